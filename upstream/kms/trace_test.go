package kms_test

import (
	"strings"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

// with returns the lines of a log that contain text.
func with(log *upstreamtest.Buffer, text string) (found []string) {
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// TestTheCauseOfACallIsFollowed makes a call that fails over and is answered in the end: every
// line on the way names the client's request and trace, and so does the log of the server.
func TestTheCauseOfACallIsFollowed(t *testing.T) {
	store, _ := backend(t)
	create(t, store, "app/db", "value")
	var ours, theirs upstreamtest.Buffer
	addr := start(t, store, nil, kmsserver.Options{Logger: theirs.Logger()})
	bad := upstreamtest.NewFaulty(t, addr.String())
	bad.Set(upstreamtest.Unavailable)
	client := connect(t, kms.Options{
		Endpoints: []kms.Endpoint{over(bad), plain(addr)},
		Logger:    ours.Logger(),
	})
	trace, _ := upstream.ParseTraceParent([]byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
	const fromClient, traced = "request_id=request-of-the-client", "trace_id=0af7651916cd43dd8448eb211c80319c span_id=b7ad6b7169203331"
	ctx := upstream.WithCause(t.Context(), upstream.Cause{RequestID: "request-of-the-client", Trace: trace})
	if _, err := client.GetSecretValue(ctx, ref("app/db")); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"attempt failed", "endpoint rests", "attempt answered"} {
		found := with(&ours, text)
		if len(found) != 1 || !strings.Contains(found[0], fromClient+" "+traced) {
			t.Errorf("%s: %q", text, found)
		}
	}
	// The server has a request id of its own, and the trace.
	if found := with(&theirs, traced); len(found) != 1 || strings.Contains(found[0], fromClient) || !strings.Contains(found[0], "op=GetSecretValue") {
		t.Errorf("the server logs %q", found)
	}
	// What it refuses, it finds again too.
	if _, err := client.GetSecretValue(ctx, ref("app/none")); err == nil {
		t.Error("there is no such secret")
	}
	if found := with(&theirs, "Forbidden.ResourceNotFound"); len(found) != 1 || !strings.Contains(found[0], traced) {
		t.Errorf("the server logs %q", found)
	}
	// Without a cause nothing is made up.
	if _, err := client.GetSecretValue(t.Context(), ref("app/db")); err != nil {
		t.Fatal(err)
	}
	for _, found := range [][]string{with(&ours, "attempt answered"), with(&theirs, "op=GetSecretValue")} {
		if last := found[len(found)-1]; strings.Contains(last, "trace_id") || strings.Contains(last, fromClient) {
			t.Errorf("a call without a cause: %q", last)
		}
	}
}
