package render

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sethvargo/go-retry"

	"secretagent/upstream"
)

// The pauses between attempts of what failed.
const (
	retryFirst  = 250 * time.Millisecond
	retryLast   = time.Minute
	retryJitter = 20 // percent, so that a fleet does not come back at once
)

// unit is what is rendered and published as one: a target or a set.
type unit struct {
	name      string // path of the file or folder
	docs      []document
	files     []string // names of the files, for errors and diffs
	place     place
	leftovers func() error // removes what a killed agent left; nil: done for the whole folder
	onRemoved OnRemoved
	wait      Wait
	group     *hookGroup // nil: no hook

	// known is what the last computation used, and whether it may be absent. It belongs to
	// whoever renders.
	known map[upstream.SecretRef]bool

	// The rest is guarded by Renderer.mu.

	state      State
	rendered   bool // once at least
	failure    error
	failures   int
	nextTry    time.Time
	lastTry    time.Time
	lastChange time.Time
	values     []upstream.SecretValue // of the last success
	before     []upstream.SecretValue // of the success before, for masking
	absent     []upstream.SecretRef
	backoff    retry.Backoff

	dirty      bool
	dirtySince time.Time
	queued     bool
	running    bool
	timer      *time.Timer
	deps       map[upstream.SecretRef]bool
}

// rendering is the result of one computation.
type rendering struct {
	outs   []*output
	values []upstream.SecretValue // of every secret in use, sorted by reference
	absent []upstream.SecretRef
}

// compute renders every document of u from one moment of src. watch is called for every
// reference before it is read for the first time.
func (u *unit) compute(ctx context.Context, src Source, timeout time.Duration, watch func(upstream.SecretRef)) (*rendering, error) {
	s := &scope{ctx: ctx, src: src, timeout: timeout, watch: watch}
	if watch != nil {
		for ref := range u.known {
			watch(ref)
		}
	}
	result := &rendering{}
	taken, err := s.settle(u.known, func() error {
		result.outs = result.outs[:0]
		for i, doc := range u.docs {
			out, err := doc.render(s)
			if err != nil {
				return u.inFile(i, err)
			}
			result.outs = append(result.outs, out)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	u.known = make(map[upstream.SecretRef]bool, len(s.used))
	for ref, optional := range s.used {
		u.known[ref] = optional
	}
	refs := make([]upstream.SecretRef, 0, len(taken))
	for ref := range taken {
		refs = append(refs, ref)
	}
	slices.SortFunc(refs, func(a, b upstream.SecretRef) int { return strings.Compare(a.String(), b.String()) })
	for _, ref := range refs {
		if e := taken[ref]; e.absent != nil {
			result.absent = append(result.absent, ref)
		} else {
			result.values = append(result.values, e.value)
		}
	}
	return result, nil
}

// inFile says which file of a set an error is about; a template error says it itself.
func (u *unit) inFile(i int, err error) error {
	var te *TemplateError
	if len(u.files) == 1 || errors.As(err, &te) {
		return err
	}
	return fmt.Errorf("%s: %w", u.files[i], err)
}

// newBackoff returns the pauses after failures in a row.
func newBackoff() retry.Backoff {
	return retry.WithJitterPercent(retryJitter, retry.WithCappedDuration(retryLast, retry.NewExponential(retryFirst)))
}

// pause returns how long to wait after err.
func pause(b retry.Backoff, err error) time.Duration {
	d, _ := b.Next() // never stops
	var ue *upstream.Error
	if errors.As(err, &ue) && ue.RetryAfter > d {
		d = min(ue.RetryAfter, retryLast)
	}
	return d
}

// temporary reports whether the same computation may succeed soon without anybody's help.
func temporary(err error) bool {
	for _, target := range []error{upstream.ErrThrottled, upstream.ErrInternal, upstream.ErrUnavailable, context.DeadlineExceeded, errUnsettled} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// removed reports whether err says that a secret in use was deleted.
func removed(err error) bool {
	return errors.Is(err, upstream.ErrNotFound) || errors.Is(err, upstream.ErrPendingDeletion)
}
