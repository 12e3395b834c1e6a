// Package await lets tests wait for what must come: they poll, with a deadline, and conclude nothing from how long it takes.
package await
