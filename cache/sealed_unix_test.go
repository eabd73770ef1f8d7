//go:build unix

package cache_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"secretagent/cache"
)

func TestPipeInPlaceOfTheSealedFileStopsNobody(t *testing.T) {
	opts := sealedIn(t)
	if err := errors.Join(os.MkdirAll(filepath.Dir(opts.Sealed.Path), 0o700), syscall.Mkfifo(opts.Sealed.Path, 0o600)); err != nil {
		t.Fatal(err)
	}
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		c, err := cache.New(constant(10), opts)
		if err != nil {
			t.Error(err)
			return
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-opened:
	case <-time.After(10 * time.Second):
		t.Fatal("the cache waits for a writer of " + filepath.Base(opts.Sealed.Path))
	}
}
