package upstreamtest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"secretagent/upstream"
)

// Harness is one backend under test.
type Harness struct {
	// Manager holds no secret when a test gets it, and is the test's own.
	Manager upstream.Manager

	// Advance moves the backend's clock forward. Tests that need it are skipped where it
	// is nil.
	Advance func(d time.Duration)

	// Emulate is what the backend does as the cloud does it.
	Emulate Emulation
}

// promise is one sentence about a Manager and the test that holds it to it. When the test
// begins there is the secret app/db, with the one version v1.
type promise struct {
	sentence string
	test     func(t *suite)
}

// Run checks every promise of [upstream.Manager] as a sub-test of its own. It calls open once
// for each; what open needs to undo it registers with [testing.T.Cleanup].
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, group := range []struct {
		name     string
		promises []promise
	}{
		{"reading", readingPromises},
		{"creating", creatingPromises},
		{"putting", puttingPromises},
		{"staging", stagingPromises},
		{"limits of versions and labels", limitPromises},
		{"deleting", deletingPromises},
		{"listing", listingPromises},
		{"metadata", metadataPromises},
		{"what only the cloud has", cloudPromises},
		{"tagging", taggingPromises},
		{"drawing passwords", passwordPromises},
		{"names", namePromises},
		{"contexts", contextPromises},
		{"concurrency", concurrencyPromises},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, p := range group.promises {
				t.Run(p.sentence, func(t *testing.T) {
					h := open(t)
					s := &suite{T: t, m: h.Manager, advance: h.Advance, emulate: h.Emulate}
					s.create(app)
					p.test(s)
				})
			}
		})
	}
}

// suite is what a test of one promise works with.
type suite struct {
	*testing.T
	m       upstream.Manager
	advance func(time.Duration)
	emulate Emulation
}

const (
	app     upstream.SecretName = "app/db"
	missing upstream.SecretName = "app/missing"
)

var one = []upstream.SecretName{app}

// What a wrong request may be answered with where the API does not say which.
var (
	invalid = []error{upstream.ErrInvalidParameter, upstream.ErrMissingParameter}
	tooMuch = []error{upstream.ErrInvalidParameter, upstream.ErrLimitExceeded}
)

func data(s string) upstream.SecretData { return upstream.NewSecretData([]byte(s)) }

// ok ends the test when err is an error.
func (t *suite) ok(what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// refused checks that err wraps one of the sentinels inside an *upstream.Error.
func (t *suite) refused(what string, err error, sentinels ...error) {
	t.Helper()
	if !slices.ContainsFunc(sentinels, func(s error) bool { return errors.Is(err, s) }) {
		t.Errorf("%s: got %v, want one of %v", what, err, sentinels)
		return
	}
	if !errors.As(err, new(*upstream.Error)) {
		t.Errorf("%s: %T is no *upstream.Error", what, err)
	}
}

// create makes a generic secret whose first version is v1, with the version id as value.
func (t *suite) create(name upstream.SecretName) {
	t.Helper()
	t.ok("create "+string(name), t.createWith(name, "v1"))
}

func (t *suite) createWith(name upstream.SecretName, value string) error {
	return only(t.m.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: name, VersionID: "v1", SecretData: data(value)}))
}

// put adds a version whose value is its id.
func (t *suite) put(id upstream.VersionID, stages ...upstream.VersionStage) upstream.SecretVersion {
	t.Helper()
	v, err := t.m.PutSecretValue(t.Context(), upstream.PutSecretValueInput{
		SecretName: app, VersionID: id, SecretData: data(string(id)), VersionStages: stages,
	})
	t.ok("put "+string(id), err)
	return v
}

// putValue adds a version with another value than its id.
func (t *suite) putValue(id upstream.VersionID, value string) error {
	return only(t.m.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: app, VersionID: id, SecretData: data(value)}))
}

// update sets the description of app/db.
func (t *suite) update(description string) error {
	return t.m.UpdateSecret(t.Context(), upstream.UpdateSecretInput{SecretName: app, Description: &description})
}

func (t *suite) move(stage upstream.VersionStage, to, from upstream.VersionID) error {
	return t.m.UpdateSecretVersionStage(t.Context(), upstream.UpdateSecretVersionStageInput{
		SecretName: app, VersionStage: stage, MoveToVersion: to, RemoveFromVersion: from,
	})
}

func (t *suite) get(ref upstream.SecretRef) (upstream.SecretValue, error) {
	return t.m.GetSecretValue(t.Context(), ref)
}

// only returns the error of a call that has an answer too.
func only[T any](_ T, err error) error { return err }

// read returns a value that must be there.
func (t *suite) read(ref upstream.SecretRef) upstream.SecretValue {
	t.Helper()
	v, err := t.get(ref)
	t.ok("read "+ref.String(), cmp.Or(err, v.Answers(ref)))
	return v
}

// describe returns all that is told about a secret, its tags included.
func (t *suite) describe(name upstream.SecretName) upstream.SecretMetadata {
	t.Helper()
	meta, err := t.m.DescribeSecret(t.Context(), name, true)
	t.ok("describe", err)
	slices.SortFunc(meta.Tags, func(a, b upstream.Tag) int { return cmp.Compare(a.Key, b.Key) })
	return meta
}

func (t *suite) list(in upstream.ListSecretsInput) upstream.ListSecretsOutput {
	t.Helper()
	out, err := t.m.ListSecrets(t.Context(), in)
	t.ok("list", err)
	return out
}

func (t *suite) versions(in upstream.ListSecretVersionIDsInput) upstream.ListSecretVersionIDsOutput {
	t.Helper()
	in.SecretName = app
	out, err := t.m.ListSecretVersionIDs(t.Context(), in)
	t.ok("list versions", err)
	return out
}

// reads checks which version ref means, its labels, and its value, which is its id.
func (t *suite) reads(ref upstream.SecretRef, id upstream.VersionID, stages ...upstream.VersionStage) {
	t.Helper()
	v := t.read(ref)
	if v.SecretName != ref.SecretName || v.VersionID != id || string(v.SecretData.Reveal()) != string(id) || !slices.Equal(v.VersionStages, stages) {
		t.Errorf("%s is version %s with labels %v, want %s with %v", ref, v.VersionID, v.VersionStages, id, stages)
	}
}

// putUpTo adds the versions v2 to vN.
func (t *suite) putUpTo(n int) {
	t.Helper()
	for i := 2; i <= n; i++ {
		t.put(upstream.VersionID(fmt.Sprintf("v%d", i)))
	}
}

// tag sets tags on secrets.
func (t *suite) tag(names []upstream.SecretName, tags ...upstream.Tag) {
	t.Helper()
	t.ok("tag", t.m.TagResources(t.Context(), names, tags))
}

// all returns every version, newest first.
func (t *suite) all() []upstream.SecretVersion {
	t.Helper()
	return t.versions(upstream.ListSecretVersionIDsInput{IncludeDeprecated: true, Page: upstream.Page{Size: 100}}).Versions
}

// holds is lists, and reads each version by every label that it has.
func (t *suite) holds(want ...string) {
	t.Helper()
	t.lists(want...)
	for _, v := range t.all() {
		for _, stage := range v.VersionStages {
			t.reads(upstream.SecretRef{SecretName: app, VersionStage: stage}, v.VersionID, v.VersionStages...)
		}
	}
}

// lists checks all versions with their labels, newest first, each written "v2 ACSCurrent a".
func (t *suite) lists(want ...string) {
	t.Helper()
	var got []string
	for _, v := range t.all() {
		line := string(v.VersionID)
		for _, stage := range v.VersionStages {
			line += " " + string(stage)
		}
		got = append(got, line)
	}
	if !slices.Equal(got, want) {
		t.Errorf("versions are\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// pass lets time pass. Where that is not possible it skips the test.
func (t *suite) pass(d time.Duration) {
	t.Helper()
	if t.advance == nil {
		t.Skip("this backend's clock cannot be moved")
	}
	t.advance(d)
}

// about reports whether two times are the same but for delays, clocks and rounding.
func about(a, b time.Time) bool { return a.Sub(b).Abs() < time.Minute }

// maxVersions is how many versions of a secret a backend under test keeps.
const maxVersions = 10

// The characters of a password, as the KMS API lists them.
const (
	lowercase   = "abcdefghijklmnopqrstuvwxyz"
	uppercase   = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	numbers     = "0123456789"
	punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_{|}~"
)
