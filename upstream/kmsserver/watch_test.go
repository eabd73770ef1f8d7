package kmsserver_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/kmsserver"
)

// startWatched returns a server that can be watched, whose second key may read app/* alone, and
// signers of both keys.
func startWatched(t *testing.T, change ...func(*kmsserver.Tuned)) (f *fixture, all, some *signer) {
	t.Helper()
	f = start(t, append(change, func(o *kmsserver.Tuned) {
		o.Watch = true
		o.AccessKeys = append(o.AccessKeys, narrowKey("GetSecretValue", "app/*"))
	})...)
	f.fake.MustCreate(t, "app/db", "v1", "first")
	f.fake.MustCreate(t, "other", "v1", "first")
	all, some = newSigner(f), newSigner(f)
	some.id = "narrow"
	return f, all, some
}

func narrowKey(action, secrets string) kmsserver.AccessKey {
	return kmsserver.AccessKey{ID: "narrow", Secret: secretData(keySecret), Actions: []string{action}, Secrets: []string{secrets}}
}

// cursor reads a secret and returns from where to watch.
func (s *signer) cursor(t *testing.T) string {
	t.Helper()
	a := s.call(t, "GetSecretValue", "SecretName", "app/db")
	a.wants(t, "a read", 200, "")
	return a.header.Get(upstream.WatchHeader)
}

// watch watches from cursor, in the background where it is to wait.
func (s *signer) watch(t *testing.T, cursor string) chan answer {
	t.Helper()
	req := s.v1(t, "POST", params(upstream.WatchAction, "Cursor", cursor), nil)
	answers := make(chan answer, 1)
	go func() {
		res, err := s.web.Do(req)
		if err != nil {
			t.Error(err)
			close(answers)
			return
		}
		answers <- read(t, res, nil)
	}()
	return answers
}

// waiting waits until n watchers do.
func (f *fixture) waiting(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); f.server.Stats(kmsserver.Signed).Parked != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d watchers wait", f.server.Stats(kmsserver.Signed).Parked)
		}
	}
}

// tells checks what a watch has told: names, or that some were missed.
func (a answer) tells(t *testing.T, what string, missed bool, names ...string) (cursor string) {
	t.Helper()
	a.wants(t, what, 200, "")
	told := fmt.Sprint(a.body["Changed"])
	if len(names) == 0 && told == "<nil>" {
		told = "[]"
	}
	if want := fmt.Sprint(names); told != want || a.body["Missed"] != missed {
		t.Errorf("%s: told %s, missed %v; want %s, %v", what, told, a.body["Missed"], want, missed)
	}
	return a.text("Cursor")
}

func TestAWatchTellsWhatItsKeyMayRead(t *testing.T) {
	f, all, some := startWatched(t)
	from, fromSome := all.cursor(t), some.cursor(t)
	if from == "" || from == all.cursor(t) {
		t.Errorf("a cursor counts changes: %q", from)
	}
	answers, answersSome := all.watch(t, from), some.watch(t, fromSome)
	f.waiting(t, 2)
	f.server.Changed("other")
	from = (<-answers).tells(t, "all", false, "other")
	answers = all.watch(t, from)
	f.waiting(t, 2)
	f.server.Changed("app/db")
	(<-answers).tells(t, "all", false, "app/db")
	(<-answersSome).tells(t, "some", false, "app/db")
	// Also what happened while nobody watched.
	for range 3 {
		f.server.Changed("app/x")
		f.server.Changed("other")
	}
	(<-all.watch(t, from)).tells(t, "all, later", false, "app/db", "app/x", "other")
	fromSome = (<-some.watch(t, fromSome)).tells(t, "some, later", false, "app/db", "app/x")
	// What cannot be told name by name is told at once.
	f.server.Changed(upstream.AnySecret)
	fromSome = (<-some.watch(t, fromSome)).tells(t, "any", true)
	for i := range 300 {
		f.server.Changed(upstream.SecretName(fmt.Sprint("app/", i)))
	}
	(<-some.watch(t, fromSome)).tells(t, "too many", true)
	for i := range 5000 {
		f.server.Changed(upstream.SecretName(fmt.Sprint("app/", i%7)))
	}
	(<-some.watch(t, fromSome)).tells(t, "too old", true)
	for _, foreign := range []string{"", "x", strings.Repeat("0", 32), from} { // the last is of the other key
		(<-some.watch(t, foreign)).tells(t, "the cursor "+foreign, true)
	}
}

func TestAWatchNeedsTheRightToRead(t *testing.T) {
	f, all, some := startWatched(t)
	cursor := some.cursor(t)
	some.secret = "wrong"
	(<-some.watch(t, cursor)).wants(t, "a wrong signature", 400, "SignatureDoesNotMatch")
	some.secret = keySecret
	answers := some.watch(t, cursor)
	f.waiting(t, 1)
	// Rights become narrower while it waits: it is told nothing but to look again.
	must(t, f.server.SetAccessKeys([]kmsserver.AccessKey{fullKey(), narrowKey("GetSecretValue", "app/other")}))
	f.server.Changed("app/db")
	cursor = (<-answers).tells(t, "narrower", true)
	f.server.Changed("app/db")
	answers = some.watch(t, cursor)
	f.waiting(t, 1)
	must(t, f.server.SetAccessKeys([]kmsserver.AccessKey{fullKey(), narrowKey("DescribeSecret", "*")}))
	cursor = (<-answers).tells(t, "no reader", true)
	f.server.Changed("app/db")
	(<-some.watch(t, cursor)).wants(t, "no reader", 403, "Forbidden.NoPermission")
	must(t, f.server.SetAccessKeys([]kmsserver.AccessKey{fullKey()}))
	(<-some.watch(t, cursor)).wants(t, "no key", 404, "InvalidAccessKeyId.NotFound")
	if a := f.call(t, "GetSecretValue", "SecretName", "app/db"); a.header.Get(upstream.WatchHeader) != "" {
		t.Error("it is offered on the socket")
	}
	f.call(t, upstream.WatchAction).wants(t, "the socket", 404, "InvalidApi.NotFound")
	all.call(t, upstream.WatchAction, "WaitSeconds", "x", "Cursor", all.cursor(t)).wants(t, "a bad wait", 400, "InvalidParameter")
}

// TestWhoWatchesIsKnown: whoever makes the server learns which secrets somebody waits for, and who
// comes back after nobody did must look at everything.
func TestWhoWatchesIsKnown(t *testing.T) {
	f, all, some := startWatched(t)
	watched := func(want bool, names ...upstream.SecretName) {
		t.Helper()
		for _, name := range names {
			if got := f.server.Watched(name); got != want {
				t.Errorf("%s is watched: %v", name, got)
			}
		}
	}
	cursor := some.cursor(t)
	watched(false, "app/db", "other") // to read is not to watch
	cursor = (<-some.watchFor(t, cursor, "0")).tells(t, "the first", false)
	watched(true, "app/db")
	watched(false, "other", "acs:kms:cn-x:1:secret/app/db")
	must(t, f.server.SetAccessKeys([]kmsserver.AccessKey{fullKey(), narrowKey("GetSecretValue", "app/*")}))
	watched(true, "app/db")
	(<-some.watchFor(t, cursor, "0")).tells(t, "after a reload", false)
	(<-all.watchFor(t, all.cursor(t), "0")).tells(t, "all", false)
	watched(true, "other")
	must(t, f.server.SetAccessKeys([]kmsserver.AccessKey{fullKey(), narrowKey("DescribeSecret", "*")}))
	watched(true, "other")
	must(t, f.server.SetAccessKeys(nil))
	watched(false, "app/db", "other")

	f, _, some = startWatched(t, func(o *kmsserver.Tuned) { o.Limits.WatchedFor = 0 }) // each comes too late
	first := (<-some.watchFor(t, some.cursor(t), "0")).tells(t, "the first", false)
	if f.server.Watched("app/db") {
		t.Error("one that has gone still counts")
	}
	(<-some.watchFor(t, first, "0")).tells(t, "one that comes back", true)
	(<-some.watchFor(t, first, "0")).tells(t, "another with the same key", true)
}

func TestWithoutWatchNothingIsOffered(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "first")
	s := newSigner(f)
	if cursor := s.cursor(t); cursor != "" {
		t.Errorf("offered from %q", cursor)
	}
	s.call(t, upstream.WatchAction).wants(t, "a watch", 404, "InvalidApi.NotFound")
	f.server.Changed("app/db") // has no effect
}

func TestWatchersAreBounded(t *testing.T) {
	f, all, some := startWatched(t, func(o *kmsserver.Tuned) {
		o.Limits.Watchers, o.Limits.WatchTime = 2, time.Minute
	})
	from, fromSome := all.cursor(t), some.cursor(t)
	first, second := all.watch(t, from), all.watch(t, from)
	f.waiting(t, 2)
	refused := <-all.watch(t, from)
	refused.wants(t, "one too many", http.StatusTooManyRequests, "Rejected.Throttling")
	if refused.header.Get("Retry-After") != "30" {
		t.Errorf("it may come again after %q", refused.header.Get("Retry-After"))
	}
	all.call(t, "GetSecretValue", "SecretName", "app/db").wants(t, "a read meanwhile", 200, "")
	f.server.Changed("app/db")
	<-first
	<-second
	// A wait ends by itself.
	a := <-some.watchFor(t, fromSome, "1")
	a.tells(t, "the end of the wait", false, "app/db")
	for _, seconds := range []string{"0", "1"} {
		begun := time.Now()
		(<-some.watchFor(t, a.text("Cursor"), seconds)).tells(t, "the end of the wait", false)
		if took := time.Since(begun); seconds == "1" && took < time.Second {
			t.Errorf("it has waited for %s", took)
		}
	}
	// And with the server.
	last := some.watch(t, a.text("Cursor"))
	f.waiting(t, 1)
	f.shutdown(t)
	(<-last).tells(t, "the shutdown", false)
}

// watchFor is watch for so many seconds.
func (s *signer) watchFor(t *testing.T, cursor, seconds string) chan answer {
	t.Helper()
	answers := make(chan answer, 1)
	answers <- s.call(t, upstream.WatchAction, "Cursor", cursor, "WaitSeconds", seconds)
	return answers
}
