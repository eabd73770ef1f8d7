package kms_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/kms"
)

// offering serves a KMS API that offers a watch with every answer; polled answers its polls.
func offering(t *testing.T, polled http.HandlerFunc) (*kms.Client, *atomic.Int64) {
	t.Helper()
	var polls atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(upstream.WatchHeader, "cursor")
		if r.FormValue("Action") == upstream.WatchAction {
			polls.Add(1)
			polled(w, r)
			return
		}
		_, _ = w.Write([]byte(`{"SecretName":"app/a","VersionId":"v1","SecretData":"x","SecretDataType":"text","CreateTime":"2024-01-01T00:00:00Z","VersionStages":{"VersionStage":["ACSCurrent"]},"RequestId":"r"}`))
	}))
	t.Cleanup(server.Close)
	return connect(t, kms.Options{Endpoints: []kms.Endpoint{plain(server.Listener.Addr())}}), &polls
}

// TestAnOfferWithoutAWatchCostsLittle: polls are outside the budget, and what offers a watch that is not there, as a
// proxy that adds a header does, must not have one for each read.
func TestAnOfferWithoutAWatchCostsLittle(t *testing.T) {
	if testing.Short() {
		t.Skip("rests for seconds")
	}
	client, polls := offering(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"Code":"InvalidApi.NotFound","Message":"x","RequestId":"r"}`))
	})
	watch(t, client)
	begun := time.Now()
	for polls.Load() < 3 {
		readSecret(t, client)
		time.Sleep(time.Millisecond)
	}
	if took := time.Since(begun); took < 1500*time.Millisecond { // at least half of 1s and of 2s between them
		t.Errorf("three polls within %v", took)
	}
}

// TestWhatIsToldIsNamesAndFew: what tells of changes fills no memory.
func TestWhatIsToldIsNamesAndFew(t *testing.T) {
	for what, names := range map[string][]upstream.SecretName{
		"a long one": {"app/a", upstream.SecretName(strings.Repeat("a", 3<<20))},
		"none":       {"app/a", ""},
		"many":       slices.Repeat([]upstream.SecretName{"app/a"}, 2000),
	} {
		t.Run(what, func(t *testing.T) {
			client, _ := offering(t, func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(upstream.WatchAnswer{Cursor: "next", Changed: names, RequestID: "r"})
			})
			told := watch(t, client)
			readSecret(t, client)
			wantTold(t, told, upstream.AnySecret)
		})
	}
}
