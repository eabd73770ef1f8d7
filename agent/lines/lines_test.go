package lines_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"secretagent/agent/lines"
	"secretagent/upstream/upstreamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// stuck is a stream whose reader has stopped until it is let go.
type stuck struct {
	upstreamtest.Buffer
	let chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.let
	return s.Buffer.Write(p)
}

// TestReaderThatStops writes more than is kept to a reader that has stopped: nobody waits, what
// is lost is counted and told once, and what is kept arrives in order before the line that tells
// how many are missing.
func TestReaderThatStops(t *testing.T) {
	for _, delay := range []time.Duration{0, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			out := &stuck{let: make(chan struct{})}
			var w *lines.Writer
			var losses []error
			w = lines.New(out, lines.Options{
				Limit: 100, Delay: delay,
				OnLoss:     func(err error) { losses = append(losses, err) },
				OnRecovery: func(lost uint64) { fmt.Fprintf(w, "lost %d\n", lost) },
			})
			kept := ""
			line := func(n int) (err error) {
				text := fmt.Sprintf("line %04d\n", n) // 10 bytes
				if _, err = w.Write([]byte(text)); err == nil {
					kept += text
				}
				return err
			}
			began := time.Now()
			must(t, line(0))      // of several, some could be left to wait
			time.Sleep(2 * delay) // it is being written now
			synctest.Wait()
			began = began.Add(2 * delay)
			for n := range 10 {
				must(t, line(1+n))
			}
			for n := range 7 {
				if err := line(11 + n); !errors.Is(err, lines.ErrFull) {
					t.Fatalf("line %d: %v", n, err)
				}
			}
			if time.Since(began) != 0 || w.Lost() != 7 || !slices.Equal(losses, []error{lines.ErrFull}) {
				t.Fatalf("took %v, %d lost, told %v", time.Since(began), w.Lost(), losses)
			}
			close(out.let)
			must(t, w.Flush())
			if got := out.String(); got != kept+"lost 7\n" {
				t.Errorf("got\n%swant\n%slost 7", got, kept)
			}
		})
	}
}

// TestEndDoesNotWaitForAReader holds that a reader that has stopped costs a second at the end.
func TestEndDoesNotWaitForAReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{let: make(chan struct{})}
		defer close(out.let)
		w := lines.New(out, lines.Options{})
		fmt.Fprintln(w, "one")
		synctest.Wait()
		fmt.Fprintln(w, "two")
		began := time.Now()
		if err := w.Close(); !errors.Is(err, lines.ErrFull) || time.Since(began) != time.Second || w.Lost() != 1 {
			t.Errorf("%v after %v, %d lost", err, time.Since(began), w.Lost())
		}
		if _, err := fmt.Fprintln(w, "three"); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// room is a disk with room for so many bytes.
type room struct {
	upstreamtest.Buffer
	left int
}

func (d *room) Write(p []byte) (int, error) {
	n := min(len(p), d.left)
	d.left -= n
	if _, err := d.Buffer.Write(p[:n]); err != nil || n == len(p) {
		return n, err
	}
	return n, syscall.ENOSPC
}

// TestFullDisk fills the disk in the middle of a line, and goes on when there is room again: it is
// told once, and every line but those that were counted as lost is whole.
func TestFullDisk(t *testing.T) {
	disk := &room{left: 55}
	var told []string
	w := lines.New(disk, lines.Options{
		OnLoss:     func(err error) { told = append(told, err.Error()) },
		OnRecovery: func(lost uint64) { told = append(told, fmt.Sprint(lost, " lost")) },
	})
	write := func(n int) {
		for range n {
			fmt.Fprintln(w, "123456789")
		}
		must(t, w.Flush())
	}
	write(10)
	write(5)
	lost := w.Lost()
	disk.left = 1000
	write(20)
	whole := 0
	for line := range strings.Lines(disk.String()) {
		if line == "123456789\n" {
			whole++
		}
	}
	if lost != 10 || w.Lost() != lost || whole != 25 {
		t.Errorf("%d whole lines of 35, %d and %d lost:\n%s", whole, lost, w.Lost(), disk)
	}
	if want := []string{syscall.ENOSPC.Error(), "10 lost"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

// shy takes a byte at a time, and every other time none, as a full pipe that must not block.
type shy struct {
	upstreamtest.Buffer
	turn int
}

func (s *shy) Write(p []byte) (int, error) {
	if s.turn++; s.turn%2 == 0 {
		return 0, &os.PathError{Op: "write", Err: syscall.EAGAIN}
	}
	if _, err := s.Buffer.Write(p[:1]); err != nil || len(p) == 1 {
		return 1, err
	}
	return 1, &os.PathError{Op: "write", Err: syscall.EAGAIN}
}

func TestStreamThatDoesNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &shy{}
		w := lines.New(out, lines.Options{})
		fmt.Fprintln(w, "all of it")
		must(t, w.Close())
		if out.String() != "all of it\n" || w.Lost() != 0 {
			t.Errorf("%q, %d lost", out, w.Lost())
		}
	})
}

func count(path string) int {
	b, _ := os.ReadFile(path)
	return strings.Count(string(b), "\n")
}

func TestFileIsReopened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := lines.Open(path, lines.Options{Delay: time.Hour})
	must(t, err)
	fmt.Fprintln(w, "one")
	must(t, os.Rename(path, path+".1"))
	must(t, w.Reopen())
	fmt.Fprintln(w, "two")
	must(t, w.Close())
	if count(path+".1") != 1 || count(path) != 1 {
		t.Errorf("%d and %d lines", count(path+".1"), count(path))
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := w.Reopen(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed file was reopened: %v", err)
	}
	if _, err := lines.Open(filepath.Join(path, "x"), lines.Options{}); err == nil {
		t.Error("a file below a file was opened")
	}
	must(t, lines.New(io.Discard, lines.Options{}).Reopen())
}

// TestRotationUnderLoad renames the file away again and again while lines are written. None is
// lost or cut, and none goes to a file after Reopen has let go of it.
func TestRotationUnderLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := lines.Open(path, lines.Options{Delay: time.Millisecond})
	must(t, err)
	const writers, each = 4, 500
	var writing sync.WaitGroup
	for i := range writers {
		writing.Go(func() {
			for j := range each {
				fmt.Fprintf(w, "%d-%03d\n", i, j)
				time.Sleep(20 * time.Microsecond)
			}
		})
	}
	var left []int
	for i := range 5 {
		must(t, os.Rename(path, fmt.Sprint(path, ".", i)))
		must(t, w.Reopen())
		left = append(left, count(fmt.Sprint(path, ".", i)))
		time.Sleep(2 * time.Millisecond)
	}
	writing.Wait()
	must(t, w.Close())
	files, err := filepath.Glob(path + "*")
	must(t, err)
	seen := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(t, err)
		for line := range strings.Lines(string(text)) {
			if seen[line] = true; len(line) != len("0-000\n") {
				t.Fatalf("%q", line)
			}
		}
	}
	if len(seen) != writers*each || w.Lost() != 0 || len(files) != 6 {
		t.Errorf("%d of %d lines in %d files, %d lost", len(seen), writers*each, len(files), w.Lost())
	}
	for i, n := range left {
		if now := count(fmt.Sprint(path, ".", i)); now != n {
			t.Errorf("file %d had %d lines when it was let go of, now %d", i, n, now)
		}
	}
}
