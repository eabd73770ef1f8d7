package endpoint

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"

	"secretagent/upstream/slots"
)

func TestOperatorIsRootAndTheUserOfTheAgent(t *testing.T) {
	us := uint32(os.Geteuid())
	for _, c := range []struct {
		peer slots.Peer
		want bool
	}{
		{slots.Peer{UID: 0, PID: 7}, true}, {slots.Peer{UID: us, PID: 7}, true}, {slots.Peer{UID: 4711, PID: 7}, us == 4711},
		{slots.Peer{UID: 0}, false}, {slots.Peer{UID: us}, false}, // of other containers
	} {
		if got := isOperator(&conn{peer: peer{c.peer, true}}); got != c.want {
			t.Errorf("%v: %v", c.peer, got)
		}
	}
	if isOperator(&conn{peer: peer{slots.Peer{UID: 0, PID: 7}, false}}) {
		t.Error("somebody who is not known")
	}
}

func TestOperatorAnswersStatusAndReloadAlone(t *testing.T) {
	var failure error
	s := &Server{opts: Options{
		Status: func(v Viewer) any { return map[string]bool{"All": v.All && v.May("any") && v.Caller == operatorName} },
		Reload: func(context.Context) error { return failure },
	}}
	ask := func(method, path string) (int, string, bool) {
		status, body, ok := s.Operator(t.Context(), method, path)
		return status, strings.TrimSpace(string(body)), ok
	}
	if status, body, ok := ask("GET", "/status"); !ok || status != http.StatusOK || body != `{"All":true}` {
		t.Errorf("status: %d %s", status, body)
	}
	if status, body, ok := ask("POST", "/reload"); !ok || status != http.StatusOK || body != `{"Reloaded":true}` {
		t.Errorf("reload: %d %s", status, body)
	}
	failure = errors.New("why")
	if status, body, _ := ask("POST", "/reload"); status != http.StatusUnprocessableEntity || body != `{"Reloaded":false,"Error":"why"}` {
		t.Errorf("reload that fails: %d %s", status, body)
	}
	failure = reported{}
	if _, body, _ := ask("POST", "/reload"); !strings.Contains(body, `"Report":"a.yaml:1:1: x\n"`) {
		t.Errorf("reload of a wrong file: %s", body)
	}
	for _, other := range [][2]string{{"POST", "/status"}, {"GET", "/reload"}, {"GET", "/v1/demo/db"}, {"GET", "/metrics"}, {"POST", "/status/link"}} {
		if _, _, ok := ask(other[0], other[1]); ok {
			t.Errorf("%v is answered", other)
		}
	}
}

type reported struct{}

func (reported) Error() string  { return "1 problem" }
func (reported) Report() string { return "a.yaml:1:1: x\n" }
