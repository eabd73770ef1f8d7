package child

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	reapInterval = time.Second            // between looks that count
	reapPause    = 100 * time.Millisecond // at least between looks, whatever happens
	reapLooks    = 3                      // after so many, no other part of the program waits for a stranger
)

// reaper collects the orphans that the kernel hands to this process.
type reaper struct {
	// group returns the application, which is not the reaper's business, and the id of its
	// group; zeros when there is none.
	group func() (leader, id int)
	log   *slog.Logger

	seen map[int]sighting // :: process id of a zombie → how often it was found
}

// sighting is what is known about a zombie that may be somebody else's child.
type sighting struct {
	looks int       // that found it and count
	last  time.Time // of them
}

// StartReaper starts to reap the orphans that end up with this process, when it is process 1 or
// [Options.Subreaper] of app, which may be nil, makes it the one who gets them. What another part
// of the program waits for is left to that. The returned function stops it and waits for the end.
func StartReaper(app *Supervisor, log *slog.Logger) (stop func(), err error) {
	subreaper := app != nil && app.opts.Subreaper
	if !subreaper && os.Getpid() != 1 {
		return func() {}, nil
	}
	if subreaper {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("become the reaper of orphans: %w", err)
		}
	}
	r := &reaper{group: app.family, log: log, seen: map[int]sighting{}}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.run(ctx, children) })
	return func() {
		signal.Stop(children)
		cancel()
		running.Wait()
		if subreaper {
			_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
		}
	}, nil
}

func (r *reaper) run(ctx context.Context, children <-chan os.Signal) {
	for ctx.Err() == nil {
		var again <-chan time.Time
		if r.look(time.Now()) {
			again = time.After(reapInterval)
		}
		select {
		case <-ctx.Done():
		case <-time.After(reapPause):
		}
		select {
		case <-ctx.Done():
		case <-children:
		case <-again:
		}
	}
}

// look reaps what it may and reports whether zombies were left for a later look.
func (r *reaper) look(now time.Time) (again bool) {
	pids, err := processes()
	if err != nil {
		r.log.Warn("cannot look for orphans", "err", err, "hint", "make /proc readable for the agent")
		return true
	}
	leader, group := r.group()
	still := map[int]sighting{}
	for _, pid := range pids {
		if pid == leader || !isZombieChild(pid) {
			continue
		}
		if of, err := unix.Getpgid(pid); group == 0 || err != nil || of != group {
			seen := r.seen[pid]
			if now.Sub(seen.last) >= reapInterval {
				seen = sighting{seen.looks + 1, now}
			}
			if seen.looks < reapLooks {
				still[pid] = seen
				continue
			}
		}
		var status unix.WaitStatus
		if got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err == nil && got == pid {
			r.log.Debug("orphan reaped", "pid", pid)
		}
	}
	r.seen = still
	return len(still) > 0
}

// isZombieChild reports whether pid is a child of ours that has ended and is not reaped yet.
func isZombieChild(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}
