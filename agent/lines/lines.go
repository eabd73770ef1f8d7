// Package lines writes lines to a stream or a file in the background, so that nobody waits for
// the reader of the one or the disk of the other.
//
//	log := lines.New(os.Stderr, lines.Options{})
//	defer log.Close()
//	fmt.Fprintln(log, "…")
//
// A [Writer] keeps what it gets and returns; one goroutine at a time, which is there only while
// there is something to write, passes it on in the same order. What finds [Options.Limit] bytes
// waiting is lost and counted, and so is what cannot be written. The end waits for at most a
// second.
package lines

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	defaultLimit = 1 << 20
	enough       = 64 << 10              // so many bytes are written without further delay
	patience     = time.Second           // of Flush, Reopen and Close
	retryPause   = 10 * time.Millisecond // before a stream that must not block is tried again
)

// ErrFull says that lines are lost because those before them are not taken in time.
var ErrFull = errors.New("the lines are not taken in time")

// Options of a [Writer]. The functions are called without a lock and may write to it; they must
// not block.
type Options struct {
	// Limit is how many bytes may wait to be written; zero: 1 MiB. The line that reaches it
	// is still kept.
	Limit int

	// Delay collects lines that are not many for so long. Zero writes them at once.
	Delay time.Duration

	// Open opens the file of [Open], also when it is opened again. Nil opens it to append, and
	// creates it with mode 0600 when it is missing.
	Open func(path string) (*os.File, error)

	// OnLoss is called when the first lines are lost after a time without loss. Nil ignores it.
	OnLoss func(error)

	// OnRecovery is called when lines are written again, with the number of those that were lost
	// since it was called last. Nil ignores it.
	OnRecovery func(lost uint64)
}

// Writer is an [io.Writer] that does not block. Its methods are safe for concurrent use.
type Writer struct {
	opts Options
	path string // empty: out is not ours to open and close

	lost atomic.Uint64 // lines

	mu      sync.Mutex
	out     io.Writer
	file    *os.File // out, if it is ours
	waiting []byte
	spare   []byte        // the next waiting
	busy    chan struct{} // closed when the goroutine that writes has ended; nil: there is none
	delayed bool          // a goroutine will start when the delay is over
	failing bool          // lines were lost, and OnRecovery has not been called since
	works   bool          // what was written last was written whole
	told    uint64        // how many lost lines OnRecovery has been told of
	torn    bool          // the output ends with a part of a line
	closed  bool
}

// New returns a writer to out, which it does not close.
func New(out io.Writer, opts Options) *Writer {
	opts.Limit = cmp.Or(opts.Limit, defaultLimit)
	return &Writer{opts: opts, out: out}
}

// Open returns a writer that appends to the file at path, as opts.Open opens it.
func Open(path string, opts Options) (*Writer, error) {
	if opts.Open == nil {
		opts.Open = open
	}
	f, err := opts.Open(path)
	if err != nil {
		return nil, err
	}
	w := New(f, opts)
	w.path, w.file = path, f
	return w, nil
}

func open(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
}

// Lost returns how many lines were lost.
func (w *Writer) Lost() uint64 { return w.lost.Load() }

// Write keeps one or more whole lines to be written, all or none of them. It does not keep p. The
// error is [ErrFull] or, after Close, [os.ErrClosed].
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	switch {
	case w.closed:
		w.mu.Unlock()
		return 0, os.ErrClosed
	case len(w.waiting) >= w.opts.Limit:
		told := w.loseLocked(p, ErrFull)
		w.mu.Unlock()
		told()
		return 0, ErrFull
	}
	w.waiting = append(w.waiting, p...)
	if w.opts.Delay == 0 || len(w.waiting) >= enough {
		w.startLocked()
	} else {
		w.delayLocked()
	}
	w.mu.Unlock()
	return len(p), nil
}

// loseLocked counts the lines that end in p as lost and returns what tells so, if that is news.
func (w *Writer) loseLocked(p []byte, err error) (tell func()) {
	w.lost.Add(uint64(bytes.Count(p, []byte("\n"))))
	news := !w.failing && w.opts.OnLoss != nil
	w.failing = true
	return func() {
		if news {
			w.opts.OnLoss(err)
		}
	}
}

// startLocked writes what waits unless that is being done.
func (w *Writer) startLocked() {
	if w.busy == nil && len(w.waiting) > 0 {
		w.busy = make(chan struct{})
		go w.run()
	}
}

// delayLocked starts when the delay is over.
func (w *Writer) delayLocked() {
	if w.delayed || w.busy != nil {
		return
	}
	w.delayed = true
	time.AfterFunc(w.opts.Delay, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.delayed = false
		w.startLocked()
	})
}

// run writes until few lines wait, or none when there is no delay.
func (w *Writer) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		batch, file := w.waiting, w.file
		w.waiting, w.spare = w.spare[:0], nil
		if w.failing && w.works {
			// Nothing waits now, so that there is room for a line about it.
			lost := w.lost.Load() - w.told
			w.failing, w.told = false, w.told+lost
			if w.opts.OnRecovery != nil {
				w.mu.Unlock()
				w.opts.OnRecovery(lost)
				w.mu.Lock()
			}
		}
		if len(batch) > 0 {
			w.writeLocked(batch, file)
		}
		if cap(batch) <= 8*enough { // what a burst has made larger is given back
			w.spare = batch
		}
		switch {
		case w.failing && w.works, len(w.waiting) >= enough, len(w.waiting) > 0 && w.opts.Delay == 0:
			continue
		}
		close(w.busy)
		w.busy = nil
		if len(w.waiting) > 0 {
			w.delayLocked()
		}
		return
	}
}

// writeLocked writes a batch without the lock, and notes how that went. What cannot be written is
// lost: a growing backlog would only move the loss. A line that was cut short is ended before
// the next one.
func (w *Writer) writeLocked(batch []byte, file *os.File) {
	out, written := w.out, batch
	if w.torn {
		written = append([]byte("\n"), batch...)
	}
	w.mu.Unlock()
	n, err := write(out, written)
	w.mu.Lock()
	if n > 0 && file == w.file { // not the one before Reopen
		w.torn = written[n-1] != '\n'
	}
	w.works = err == nil
	if err != nil {
		tell := w.loseLocked(batch[max(0, n-(len(written)-len(batch))):], err)
		w.mu.Unlock()
		tell()
		w.mu.Lock()
	}
}

// write writes p to out. Another process that has the same stream may have made it one that does
// not block: it is tried again then.
func write(out io.Writer, p []byte) (n int, err error) {
	for {
		wrote, err := out.Write(p[n:])
		n += wrote
		if !errors.Is(err, syscall.EAGAIN) {
			return n, err
		}
		time.Sleep(retryPause)
	}
}

// Flush waits until what was kept is written, for at most a second.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flushLocked()
}

func (w *Writer) flushLocked() error {
	late := time.After(patience)
	for len(w.waiting) > 0 || w.busy != nil {
		if !w.awaitLocked(late) {
			return ErrFull
		}
	}
	return nil
}

// awaitLocked waits, without the lock, for the goroutine that writes, and starts one where there
// is none. It returns false when late comes first.
func (w *Writer) awaitLocked(late <-chan time.Time) bool {
	w.startLocked()
	busy := w.busy
	if busy == nil {
		return true
	}
	w.mu.Unlock()
	defer w.mu.Lock()
	select {
	case <-busy:
		return true
	case <-late:
		return false
	}
}

// Reopen goes on with a new file of the same name, for log rotation, after what was kept is
// written to the old one, or a second later. On error the old file stays in use. A writer to a
// stream does nothing.
func (w *Writer) Reopen() error {
	if w.path == "" {
		return nil
	}
	f, err := w.opts.Open(w.path)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for late := time.After(patience); w.awaitLocked(late) && w.busy != nil; {
	}
	if w.closed {
		_ = f.Close()
		return os.ErrClosed
	}
	_ = w.file.Close() // the lines that do not get through to it are counted when they fail
	w.out, w.file, w.torn = f, f, false
	return nil
}

// Close writes what was kept, for at most a second, and closes the file. Later lines are refused.
// The error says how many lines were left, or why the file could not be closed.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	err := w.flushLocked()
	if err != nil {
		left := bytes.Count(w.waiting, []byte("\n"))
		w.lost.Add(uint64(left))
		w.waiting = nil
		err = fmt.Errorf("%w: %d are lost", err, left)
	}
	if w.file != nil {
		err = errors.Join(err, w.file.Close())
	}
	return err
}
