package etcd

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/upstream"
)

func TestNewestIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n newest
		for _, step := range []struct {
			after     time.Duration
			set, want int64
		}{{0, 7, 7}, {time.Second, 5, 7}, {newestLasts - 500*time.Millisecond, 7, 7}, {newestLasts, 7, 7}, {newestLasts + 1, 3, 3}} {
			time.Sleep(step.after)
			if n.set(step.set); n.get() != step.want {
				t.Errorf("after %v and %d it is %d, not %d", step.after, step.set, n.get(), step.want)
			}
		}
		time.Sleep(newestLasts + 1)
		if n.get() != 0 {
			t.Error("it is not forgotten")
		}
	})
}

// TestAnAnswerOfBeforeIsNone: what etcd answers is not used if it is older than what was known before it was asked.
func TestAnAnswerOfBeforeIsNone(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, testOptions(t))
	must(t, create(s, "a", "v1", "x"))
	s.db.known.set(1 << 40)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if v, err := s.GetSecretValue(ctx, upstream.SecretRef{SecretName: "a"}); err == nil {
		t.Errorf("answered with %s", v.VersionID)
	}
}
