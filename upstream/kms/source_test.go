package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// scriptedSource counts what is asked of it and answers after two seconds with the credential
// of its generation, or fails.
type scriptedSource struct {
	*CredentialSource
	log                       upstreamtest.Buffer
	opened, asked, generation int
	failure                   error
}

func newScriptedSource(t *testing.T) *scriptedSource {
	s := &scriptedSource{generation: 1}
	s.CredentialSource = newCredentialSource("test", func() (fetcher, error) {
		s.opened++
		return func() (Credential, error) {
			s.asked++
			c := Credential{AccessKeyID: fmt.Sprint(s.generation), AccessKeySecret: upstream.NewSecretData([]byte("x"))}
			time.Sleep(2 * time.Second)
			return c, s.failure
		}, nil
	}, nil, s.log.Logger())
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// gives checks what the source answers, after which wait, and how often it was asked by then.
func (s *scriptedSource) gives(t *testing.T, what, id string, wait time.Duration, asked int) {
	t.Helper()
	synctest.Wait()
	begun := time.Now()
	c, err := s.Credential(t.Context())
	if err != nil || c.AccessKeyID != id || time.Since(begun) != wait {
		t.Errorf("%s: %q, %v after %v; want %q after %v", what, c.AccessKeyID, err, time.Since(begun), id, wait)
	}
	if synctest.Wait(); s.asked != asked {
		t.Errorf("%s: asked %d times, want %d", what, s.asked, asked)
	}
}

func TestASlowSourceDelaysNoCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScriptedSource(t)
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Credential(impatient); err != context.DeadlineExceeded {
			t.Errorf("a caller that leaves: %v", err)
		}
		var calls sync.WaitGroup
		for range 8 {
			calls.Go(func() {
				if _, err := s.Credential(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		s.gives(t, "nothing is there yet, nine callers", "1", time.Second, 1)
		calls.Wait()
		s.generation = 2
		time.Sleep(checkEvery - time.Second)
		s.gives(t, "checked not long ago", "1", 0, 1)
		time.Sleep(time.Second)
		for range 8 {
			s.gives(t, "in the background", "1", 0, 2)
		}
		time.Sleep(2 * time.Second)
		s.gives(t, "renewed", "2", 0, 2)
		s.generation = 3
		time.Sleep(trustedFor)
		s.gives(t, "after a quiet time", "3", 2*time.Second, 3)
		if st := s.Status(); s.opened != 1 || st.RenewedAt != time.Now() || st.CheckedAt != time.Now() || st.Error != "" {
			t.Errorf("opened %d times, status %+v", s.opened, st)
		}
	})
}

// unlocked is a log that holds that its lines come from code that does not have the lock.
type unlocked struct {
	slog.Handler
	t *testing.T
	*scriptedSource
}

func (h unlocked) Handle(context.Context, slog.Record) error {
	for range 100 { // somebody else may have it for a moment
		if h.mu.TryLock() {
			h.mu.Unlock()
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	h.t.Error("a line is written under the lock")
	return nil
}

// TestNobodyWaitsForDiskOrLog lets the disk of the credential file hang: what is at hand is given
// out all the same, and the end waits a while.
func TestNobodyWaitsForDiskOrLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScriptedSource(t)
		hangs := false
		s.files = []string{"key"}
		s.stat = func(string) (os.FileInfo, error) {
			if hangs {
				time.Sleep(time.Hour)
			}
			return nil, os.ErrNotExist
		}
		s.logger = slog.New(unlocked{s.log.Logger().Handler(), t, s})
		s.failure = errors.New("down")
		_, _ = s.Credential(t.Context())
		s.failure = nil
		time.Sleep(firstPause)
		s.gives(t, "it is back", "1", 2*time.Second, 2)
		hangs = true
		for range 3 {
			time.Sleep(lookEvery)
			s.gives(t, "the disk hangs", "1", 0, 2)
		}
		begun := time.Now()
		_ = s.Close()
		if time.Since(begun) != closePatience {
			t.Errorf("it was closed after %v", time.Since(begun))
		}
		time.Sleep(time.Hour) // the disk is back
	})
}

func TestARevokedCredentialIsRenewedNotTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScriptedSource(t)
		s.gives(t, "at first", "1", 2*time.Second, 1)
		renew := func(what, refused, want string, asked int) {
			t.Helper()
			c, err := s.Renew(t.Context(), Credential{AccessKeyID: refused, AccessKeySecret: upstream.NewSecretData([]byte("x"))})
			if err != nil || c.AccessKeyID != want || s.asked != asked {
				t.Errorf("%s: %q, %v, asked %d times; want %q, %d", what, c.AccessKeyID, err, s.asked, want, asked)
			}
		}
		s.generation = 2
		var calls sync.WaitGroup
		for range 8 {
			calls.Go(func() { renew("revoked, eight callers", "1", "2", 2) })
		}
		calls.Wait()
		renew("renewed by another", "1", "2", 2)
		if s.opened != 2 {
			t.Errorf("%d fetchers, want a new one", s.opened)
		}
		// The new one is refused as well: it is not its age.
		renew("the next", "2", "2", 3)
		renew("two seconds later", "2", "2", 4)
		renew("four seconds have not passed", "2", "2", 4)
		time.Sleep(2 * time.Second)
		renew("they have", "2", "2", 5)
		time.Sleep(longestGap)
		s.generation = 3
		renew("much later", "2", "3", 6)
	})
}

func TestASourceFailsAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScriptedSource(t)
		s.failure = errors.New("MARKER")
		for i, pause := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
			for range 3 {
				if _, err := s.Credential(t.Context()); !errors.Is(err, upstream.ErrNoCredentials) || s.asked != i+1 || s.opened != i+1 {
					t.Errorf("failure %d: %v, asked %d times of %d fetchers", i+1, err, s.asked, s.opened)
				}
			}
			time.Sleep(pause)
		}
		s.failure = nil
		s.gives(t, "it is back", "1", 2*time.Second, 7)
		s.failure = errors.New("MARKER")
		for i := range 3 {
			time.Sleep(checkEvery)
			s.gives(t, "it fails, and what is held is used", "1", 0, 8+i)
		}
		time.Sleep(10 * time.Second)
		if c, err := s.Renew(t.Context(), s.current); err != nil || c.AccessKeyID != "1" {
			t.Errorf("revoked while it fails: %q, %v", c.AccessKeyID, err)
		}
		if st := s.Status(); st.Error == "" || strings.Contains(s.log.String(), "MARKER") {
			t.Errorf("status %+v, log:\n%s", st, s.log.String())
		}
		s.failure, s.generation = nil, 2
		time.Sleep(longestPause)
		s.gives(t, "it answers again, in the background", "1", 0, 12)
		time.Sleep(2 * time.Second)
		s.gives(t, "it answered", "2", 0, 12)
	})
}

// Key files change as Kubernetes changes them: a symlink of a whole folder is exchanged.
func TestChangedFilesArePickedUp(t *testing.T) {
	dir := t.TempDir()
	put := func(name string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"id", "secret"} {
			if err := os.WriteFile(filepath.Join(dir, name, part), []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(name, filepath.Join(dir, "..tmp")); err != nil {
			t.Skip("no symlinks here")
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		s, err := NewCredentials(CredentialOptions{Type: "access_key", AccessKeyIDFile: dir + "/..data/id", AccessKeySecretFile: dir + "/..data/secret"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		holds := func(want string) {
			t.Helper()
			c, err := s.Credential(t.Context())
			if err != nil || c.AccessKeyID != want || string(c.AccessKeySecret.Reveal()) != want {
				t.Errorf("got %q, %v, want %q", c.AccessKeyID, err, want)
			}
			synctest.Wait()
		}
		put("first")
		holds("first")
		put("second")
		holds("first") // it was looked at just now
		time.Sleep(lookEvery)
		holds("first") // the change is noticed
		holds("second")
	})
}
