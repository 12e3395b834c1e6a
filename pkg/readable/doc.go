// Package readable writes numbers, sizes and times for people: on the page, and on terminals.
package readable
