package command

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progressAfter is how long something may take before a person at a terminal is told that it goes on.
const progressAfter = time.Second

// progress tells a person at the terminal, from then on, what takes so long, until done is called. For programs it
// does nothing.
func (a *app) progress(what string) (done func()) {
	if !isTerminal(a.terminal) {
		return func() {}
	}
	return tellProgress(a.terminal, what)
}

// tellProgress is progress on a terminal.
func tellProgress(terminal io.Writer, what string) (done func()) {
	stop := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		ticker := time.NewTicker(progressAfter)
		defer ticker.Stop()
		for began, told := time.Now(), false; ; told = true {
			select {
			case <-ticker.C:
				fmt.Fprintf(terminal, "\r\x1b[K%s … %s", what, short(time.Since(began)))
			case <-stop:
				if told {
					fmt.Fprint(terminal, "\r\x1b[K")
				}
				return
			}
		}
	})
	return sync.OnceFunc(func() {
		close(stop)
		telling.Wait()
	})
}
