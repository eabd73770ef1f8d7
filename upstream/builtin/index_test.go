package builtin

import (
	"testing"

	"secretagent/upstream"
)

// A purge between two looks of a list must not be taken from its count twice.
func TestListDuringPurge(t *testing.T) {
	x := newIndex()
	live := &record{}
	x.apply([]listed{listedAs("live", live)})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				x.apply([]listed{listedAs("gone", &record{plannedDelete: 1})})
				x.apply([]listed{{name: "gone", removed: true}})
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 50_000 {
		names, total := x.span(0, 10, 2)
		if total != 1 || len(names) != 1 || names[0] != upstream.SecretName("live") {
			t.Fatalf("a list shows %d secrets, %v; one is live", total, names)
		}
	}
}
