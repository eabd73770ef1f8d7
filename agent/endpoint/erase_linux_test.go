package endpoint

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// TestPreparedAnswersAreOverwritten prepares answers in every format, lets go of them with
// their values, and counts what is left of the secret in the memory of the process. Encoders
// leave copies that nobody owns, so it is the difference that counts.
func TestPreparedAnswersAreOverwritten(t *testing.T) {
	planted := upstreamtest.Plant(t)
	s, _ := newHeld(t)
	const n = 100
	held := make([]upstream.Answer, n)
	for i := range held {
		v := &upstream.SecretValue{SecretName: "a", VersionID: upstream.VersionID(fmt.Sprint("v", i)), SecretData: upstream.NewSecretData(planted.Bytes())}
		held[i] = upstream.Answer{Value: v, Derived: new(upstream.Derived)}
		for f := FormatKMS; f < numFormats; f++ {
			if b, err := s.preparedOf(&held[i]).body(v, f, ""); err != nil || len(b.data) < 32 {
				t.Fatalf("%v: %d bytes, %v", f, len(b.data), err)
			}
		}
	}
	const kept = n * int(numFormats-FormatKMS) // the raw answer is the value itself
	runtime.GC()
	before, after := planted.Count(t), 0
	clear(held)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		runtime.GC()
		if after = planted.Count(t); before-after >= kept {
			break
		}
	}
	if before-after < kept {
		t.Errorf("of %d copies in memory %d are left; %d were ours", before, after, kept)
	}
	t.Logf("%d copies with %d of ours, %d afterwards", before, kept, after)
}
