package command

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// progressAfter is how long something may take before a person at a terminal is told that it goes on.
const progressAfter = time.Second

// progress tells a person at the terminal, from then on, what takes so long, until done is called. For programs it
// does nothing.
func (a *app) progress(what string) (done func()) {
	_, done = a.counted(what)
	return done
}

// counted is progress with a bar: count says how much of it is done. It may be called on several goroutines.
func (a *app) counted(what string) (count func(done, total int), done func()) {
	if !isTerminal(a.terminal) {
		return func(int, int) {}, func() {}
	}
	var b bar
	return b.set, tellProgress(a.terminal, what, &b)
}

// bar is how much is done.
type bar struct{ done, total atomic.Int64 }

func (b *bar) set(done, total int) {
	b.total.Store(int64(total))
	b.done.Store(int64(done))
}

// barWidth is how many characters a bar has.
const barWidth = 24

// String draws the bar; it is empty while there is nothing to count.
func (b *bar) String() string {
	done, total := b.done.Load(), b.total.Load()
	if total <= 0 {
		return ""
	}
	done = min(done, total)
	full := int(done * barWidth / total)
	return fmt.Sprintf(" [%s%s] %d of %d", strings.Repeat("#", full), strings.Repeat("-", barWidth-full), done, total)
}

// tellProgress is progress on a terminal.
func tellProgress(terminal io.Writer, what string, b *bar) (done func()) {
	stop := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		ticker := time.NewTicker(progressAfter)
		defer ticker.Stop()
		for began, told := time.Now(), false; ; told = true {
			select {
			case <-ticker.C:
				fmt.Fprintf(terminal, "\r\x1b[K%s%s … %s", what, b, short(time.Since(began)))
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
