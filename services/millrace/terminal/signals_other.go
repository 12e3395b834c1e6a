//go:build !unix

package terminal

// signals are those that a terminal sends: none.
type signals struct{}

func (t *Terminal) watch()  {}
func (s *signals) stop()    {}
func (s *signals) suspend() {}
