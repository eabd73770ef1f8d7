package render

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
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

// target is what is rendered and published as one: a file, as [Target] says it, or a [Set].
type target struct {
	name      string   // path of the file or of the folder of the set
	files     []string // paths of the files, for errors and diffs
	contents  []content
	publisher publisher
	leftovers func() error // removes what a killed agent left; nil: another target does it for the folder
	check     *Check       // nil: none
	onRemoved OnRemoved
	wait      Wait
	group     *hookGroup // nil: no hook

	// known are the references that the last computation used, and whether each may be absent.
	// The goroutine that renders owns it until Run ends.
	known map[upstream.SecretRef]bool

	// confirmed says that none of its values is any longer one that a [Restoring] source began with. It is
	// owned like known.
	confirmed bool

	// definition is equal for targets that are made from the same.
	definition [sha256.Size]byte

	// The rest is guarded by Renderer.mu.

	targetState

	dirty      bool
	dirtySince time.Time
	queued     bool
	running    bool
	timer      *time.Timer
	watched    map[upstream.SecretRef]bool
}

// targetState is what a reload keeps of a target that it does not change.
type targetState struct {
	state      State
	unchanged  bool // nothing has said since the last success that a secret in use has changed
	failure    error
	failures   int
	nextTry    time.Time
	lastTry    time.Time
	lastChange time.Time
	values     []upstream.SecretValue // of the last success; what is to be masked, see rendering.toMask
	versions   []SecretVersion        // of these
	before     []upstream.SecretValue // of the success before, for masking
	backoff    retry.Backoff
}

// content is what a file is made from: a template or a format.
type content interface {
	// render makes the output from the values of s. Errors quote no value.
	render(s *secretReader) (*output, error)
}

// rendering is the result of one computation.
type rendering struct {
	outs   []*output
	values []upstream.SecretValue // of every secret in use, sorted by reference

	versions []SecretVersion // of these
}

// toMask returns the values and what the outputs have of them, which a helper such as upper or
// trunc may have changed so that nothing else tells that it was a value.
func (r *rendering) toMask() []upstream.SecretValue {
	all := slices.Clone(r.values)
	seen := map[string]bool{}
	for _, v := range all {
		seen[string(v.SecretData.Reveal())] = true
	}
	for _, out := range r.outs {
		for _, text := range out.made() {
			if len(text) >= minMasked && !seen[text] {
				seen[text] = true
				all = append(all, upstream.SecretValue{SecretData: upstream.NewSecretData([]byte(text))})
			}
		}
	}
	return all
}

// compute renders every file of t from one moment of src. watch, unless nil, is called for
// every reference before it is read for the first time.
func (t *target) compute(ctx context.Context, src Source, timeout time.Duration, watch func(upstream.SecretRef)) (*rendering, error) {
	if watch == nil {
		watch = func(upstream.SecretRef) {}
	}
	for ref := range t.known {
		watch(ref)
	}
	s := &secretReader{ctx: ctx, src: src, timeout: timeout, watch: watch}
	result := &rendering{}
	err := s.atOneMoment(t.known, func() error {
		result.outs = result.outs[:0]
		for i, c := range t.contents {
			out, err := c.render(s)
			if err != nil {
				return t.inFile(i, err)
			}
			result.outs = append(result.outs, out)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t.known = s.used
	byName := func(a, b upstream.SecretRef) int { return strings.Compare(a.String(), b.String()) }
	for _, ref := range slices.SortedFunc(maps.Keys(s.used), byName) {
		if e := s.entries[ref]; e.absent == nil {
			result.values = append(result.values, e.value)
			result.versions = append(result.versions, SecretVersion{e.value.SecretName, e.value.VersionID, ref.Computed})
		}
	}
	return result, nil
}

// isFrom reports whether one of the files was written at that time or later. File systems tell the time some
// milliseconds late.
func (t *target) isFrom(at time.Time) bool {
	return slices.ContainsFunc(t.files, func(path string) bool {
		fi, err := os.Stat(path)
		return err == nil && fi.ModTime().After(at.Add(-20*time.Millisecond))
	})
}

// inFile says which file of a set an error is about; a template error says it itself.
func (t *target) inFile(i int, err error) error {
	var te *TemplateError
	if len(t.files) == 1 || errors.As(err, &te) {
		return err
	}
	return fmt.Errorf("%s: %w", t.files[i], err)
}

// newBackoff returns the pauses after failures in a row.
func newBackoff() retry.Backoff {
	return retry.WithJitterPercent(retryJitter, retry.WithCappedDuration(retryLast, retry.NewExponential(retryFirst)))
}

// pause returns how long to wait after err.
func pause(b retry.Backoff, err error) time.Duration {
	d, _ := b.Next() // never stops
	var ue *upstream.Error
	if errors.As(err, &ue) {
		d = max(d, min(ue.RetryAfter, retryLast))
	}
	return d
}

// temporary reports whether the same computation may succeed soon without anybody's help.
func temporary(err error) bool {
	for _, cause := range []error{upstream.ErrThrottled, upstream.ErrInternal, upstream.ErrUnavailable, context.DeadlineExceeded, errKeptChanging} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// removed reports whether err says that a secret in use was deleted.
func removed(err error) bool {
	return errors.Is(err, upstream.ErrNotFound) || errors.Is(err, upstream.ErrPendingDeletion)
}
