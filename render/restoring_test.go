package render

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/upstream"
)

// restoringSource began with values from before a crash.
type restoringSource struct {
	*fakeSource
	asOf      time.Time
	confirmed atomic.Bool
}

func (s *restoringSource) Restored(...upstream.SecretRef) (time.Time, bool) {
	return s.asOf, !s.confirmed.Load()
}

// TestAnOlderFileOfBeforeACrash: values from before a crash replace no file that was written after them, until they
// are confirmed. An older file, and one that is missing, they make.
func TestAnOlderFileOfBeforeACrash(t *testing.T) {
	for name, tc := range map[string]struct {
		file, want string
		age        time.Duration // of the file when the values were kept
	}{
		"newer":   {"new", "new", -time.Second},
		"older":   {"older", "old", time.Second},
		"missing": {"", "old", 0},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			synctest.Test(t, func(t *testing.T) {
				src := &restoringSource{sourceOf("a", "old"), time.Now(), atomic.Bool{}}
				if tc.file != "" {
					mustWrite(t, path, tc.file)
					must(t, os.Chtimes(path, time.Time{}, src.asOf.Add(-tc.age)))
				}
				stop := start(t, mustNew(t, src, Options{Targets: []Target{fileAt(path, `{{ secret "a" }}`)}}))
				time.Sleep(time.Second)
				wantFile(t, path, tc.want)
				src.confirmed.Store(true)
				src.put("a", "confirmed")
				synctest.Wait()
				wantFile(t, path, "confirmed")
				stop()
			})
		})
	}
}
