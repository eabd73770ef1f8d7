package kms

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"
	"github.com/sethvargo/go-retry"
	"golang.org/x/time/rate"

	"secretagent/upstream"
)

const (
	// watchTime is how long a server may have nothing to tell.
	watchTime = 20 * time.Second

	// Where changes come without a pause, they are collected: a fleet that shares an access key
	// must not spend what the server remembers of its requests.
	watchesPerSecond = 2
	watchBurst       = 10

	// The waits after a watch that failed: where nobody listens, which costs nobody anything, and
	// elsewhere.
	unreachedWatch = 500 * time.Millisecond
	minWatchRest   = time.Second
	maxWatchRest   = time.Minute

	maxCursor  = 128  // bytes
	maxChanged = 1000 // names in one answer; our servers name fewer
)

// watch is what a client knows of the endpoint that tells of changes.
type watch struct {
	offered chan struct{} // size one: the endpoint in use offers it

	mu     sync.Mutex
	status WatchStatus
}

// offer is the cursor that an endpoint has offered with an answer, while it is not used up.
type offer = atomic.Pointer[string]

// noteOffer notes that e can be watched. The cursor of the first answer counts: what came after is
// told from there on. The service itself never offers it, and is never asked whatever it says.
func (c *Client) noteOffer(e *endpoint, h http.Header) {
	cursor := h.Get(upstream.WatchHeader)
	if cursor != "" && len(cursor) <= maxCursor && !e.ofService() {
		e.offer.CompareAndSwap(nil, &cursor)
	}
}

// inUse notes that e is the endpoint in use.
func (c *Client) inUse(e *endpoint) {
	c.answered.Store(e)
	if e.offer.Load() == nil {
		return
	}
	select {
	case c.watch.offered <- struct{}{}:
	default:
	}
}

// ofService reports whether e is a gateway of Alibaba Cloud.
func (e *endpoint) ofService() bool {
	name, _ := hostname(e.Host)
	return strings.HasSuffix(strings.ToLower(name), ".aliyuncs.com")
}

// Watch calls changed for each secret that the endpoint in use says has changed, where it offers
// that, until ctx ends; [upstream.AnySecret]: it cannot tell which. What happens after the first
// answer that offers it is told, be it later because the endpoint could not be asked meanwhile.
// Watch returns whether there was such an answer. It may be called once at a time.
func (c *Client) Watch(ctx context.Context, changed func(upstream.SecretName)) (offered bool) {
	w := watcher{client: c, changed: changed, pace: rate.NewLimiter(watchesPerSecond, watchBurst)}
	defer c.watch.set("off", nil, nil)
	for ctx.Err() == nil {
		e := c.answered.Load()
		if e == nil || e.offer.Load() == nil {
			c.watch.set("off", nil, nil)
			select {
			case <-c.watch.offered:
			case <-ctx.Done():
			}
			continue
		}
		offered = true
		w.step(ctx, e)
	}
	return offered
}

// watcher is one [Client.Watch].
type watcher struct {
	client  *Client
	changed func(upstream.SecretName)
	behind  bool          // something may have been missed
	at      *endpoint     // whose cursor it is
	cursor  string        // from which to go on
	rests   retry.Backoff // nil: the last poll succeeded
	pace    *rate.Limiter
}

// step polls e once, and waits before the next poll as long as is needed.
func (w *watcher) step(ctx context.Context, e *endpoint) {
	if e != w.at {
		w.behind = w.behind || w.at != nil // what the other has told says nothing of this one
		w.at, w.cursor = e, *e.offer.Load()
	}
	wait := watchTime
	if w.client.watch.get().State != "on" {
		wait = 0 // first see whether it works
	}
	answer, err := w.client.poll(ctx, e, w.cursor, wait)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		w.failed(ctx, err)
		return
	}
	w.rests, w.cursor = nil, answer.Cursor
	names := answer.Changed
	unknown := func(name upstream.SecretName) bool { return name.Validate() != nil }
	if w.behind || answer.Missed || len(names) > maxChanged || slices.ContainsFunc(names, unknown) {
		w.behind, names = false, []upstream.SecretName{upstream.AnySecret}
	}
	if w.client.watch.set("on", e, nil) {
		w.client.policy.Logger.Info("changes are told by the endpoint as they happen", "endpoint", e.name)
	}
	w.client.watch.count(len(names))
	for _, name := range names {
		w.changed(name)
	}
	_ = w.pace.Wait(ctx)
}

// failed waits after a poll that failed with err.
func (w *watcher) failed(ctx context.Context, err error) {
	e, log := w.at, w.client.policy.Logger
	if w.rests == nil {
		w.rests = retry.WithCappedDuration(maxWatchRest, retry.NewExponential(minWatchRest))
	}
	rest, _ := w.rests.Next()
	if upstream.Unreached(err) {
		rest, w.rests = unreachedWatch, nil
	}
	rest = max(rest, hintOf(err))
	rest, _ = retry.WithJitterPercent(50, retry.NewConstant(rest)).Next() // a fleet must not come in step
	if errors.Is(err, upstream.ErrUnsupported) {
		e.offer.Store(nil) // another program answers there now; its offer is taken up after the rest
		w.at, w.behind = nil, true
		if w.client.watch.set("off", nil, nil) {
			log.Info("the endpoint tells of changes no more", "endpoint", e.name, "err", err)
		}
	} else if w.client.watch.set("broken", e, err) {
		log.Warn("the endpoint cannot tell of changes", "endpoint", e.name, "err", err,
			"hint", "it is asked again; until then values are as fresh as cache.ttl makes them")
	}
	select {
	case <-time.After(rest):
	case <-ctx.Done():
	}
}

// watchResponse is [upstream.WatchAnswer] as the SDK decodes it.
type watchResponse struct {
	*responses.BaseResponse
	Cursor    string
	Changed   []upstream.SecretName
	Missed    bool
	RequestId string
}

// poll asks e once what has changed since cursor, and waits for so long. It takes no place among the calls, and neither
// budget nor breaker hear of it: that nothing is told says nothing of whether values are served.
func (c *Client) poll(ctx context.Context, e *endpoint, cursor string, wait time.Duration) (*watchResponse, error) {
	attempt, cancel := context.WithTimeout(ctx, wait+c.policy.Timeout)
	defer cancel()
	response := &watchResponse{BaseResponse: &responses.BaseResponse{}}
	out := c.signed(ctx, attempt, e, request{
		op: upstream.WatchAction, waits: true,
		params: params{"Cursor": cursor, "WaitSeconds": strconv.Itoa(int(wait / time.Second))},
	}, response)
	switch {
	case out.err != nil:
		return nil, out.err
	case response.Cursor == "" || len(response.Cursor) > maxCursor:
		return nil, has(false)
	}
	return response, nil
}

// set notes the state of the watch of e, and reports whether it is a new one.
func (w *watch) set(state string, e *endpoint, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, was := &w.status, w.status.State
	s.State, s.Endpoint, s.LastFailure, s.LastCause = state, "", "", ""
	if e != nil {
		s.Endpoint = e.name
	}
	if err != nil {
		s.LastFailure, s.LastCause = upstream.Reason(err), upstream.Explain(err)
	}
	if was == state {
		return false
	}
	s.Since = time.Now()
	return true
}

func (w *watch) count(changes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Changes += uint64(changes)
}

func (w *watch) get() WatchStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}
