package agent

import (
	"fmt"
	"strings"
	"testing"

	"secretagent/upstream/kms"
)

// TestCodesOfTheServiceAreBounded: what the other side calls its errors becomes a label, so
// that it must not be able to make as many as it likes.
func TestCodesOfTheServiceAreBounded(t *testing.T) {
	m := newMetrics("test")
	m.observeCall(kms.Observation{Op: "GetSecretValue"})
	m.observeCall(kms.Observation{Op: "GetSecretValue", Code: strings.Repeat("long", 20)})
	for i := range 10_000 {
		m.observeCall(kms.Observation{Op: "GetSecretValue", Code: fmt.Sprintf("Code.%d", i)})
	}
	var text strings.Builder
	must(t, m.write(&text, func(string, string) bool { return true }))
	all, _ := ParseSeries(text.String())
	codes, sum := 0, 0.0
	for name, n := range all {
		if strings.HasPrefix(name, "secretagent_upstream_calls_total{") {
			codes++
			sum += n
		}
	}
	if codes != maxUpstreamCodes+1 || sum != 10_002 {
		t.Errorf("%d codes with %v calls; want %d, other included, with 10002", codes, sum, maxUpstreamCodes+1)
	}
	if n := all[`secretagent_upstream_calls_total{code="OK",operation="GetSecretValue"}`]; n != 1 {
		t.Errorf("%v calls succeeded, want 1", n)
	}
}
