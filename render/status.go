package render

import (
	"fmt"
	"slices"
	"time"

	"secretagent/upstream"
)

// State is where a target stands.
type State string

// The states of a target.
const (
	Pending State = "pending" // not rendered yet
	Current State = "current" // what is published is what the secrets said last
	Failed  State = "failed"  // the last attempt failed; what was published stays
	Removed State = "removed" // deleted, because a secret it needs was deleted
)

// TargetStatus is the state of a target, also as JSON. It holds no values.
type TargetStatus struct {
	Path      string   // of the file, or of the folder of a set
	Files     []string `json:",omitempty"` // of a set
	State     State
	Error     string    `json:",omitzero"` // why State is Failed or Removed
	Failures  int       // in a row
	ChangedAt time.Time `json:",omitzero"` // when something was published last, by this Renderer; zero: never
	TriedAt   time.Time `json:",omitzero"` // zero: never
	NextTry   time.Time `json:",omitzero"` // of what failed; zero: none is planned

	// Versions is what the published content is made of.
	Versions []SecretVersion `json:",omitempty"`

	HookOwed   bool   // the hook has not succeeded since the last change
	HookFailed bool   // and its last run failed
	HookError  string `json:",omitzero"` // why, or that it is owed since before the agent started

	// Printed says that Error or HookError quotes what a command has printed, which can hold more
	// of a secret than masking knows: it is for those only who may see the secrets of the target.
	Printed bool `json:"-"`
}

// SecretVersion says which version of a secret is in a file.
type SecretVersion struct {
	SecretName upstream.SecretName
	VersionID  upstream.VersionID `json:"VersionId"`

	// Computed says that the template makes the name from values: it may be a secret itself, and
	// is not to be shown unless it is known from elsewhere.
	Computed bool `json:"-"`
}

// Status returns the state of every target and set, in the order of the options.
func (r *Renderer) Status() []TargetStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]TargetStatus, len(r.targets))
	for i, t := range r.targets {
		s := TargetStatus{
			Path: t.name, State: t.state, Failures: t.failures,
			TriedAt: t.lastTry, ChangedAt: t.lastChange, NextTry: t.nextTry,
		}
		if len(t.files) != 1 || t.files[0] != t.name {
			s.Files = t.files
		}
		if t.failure != nil {
			s.Error, s.Printed = t.failure.Error(), printed(t.failure)
		}
		s.Versions = slices.Clone(t.versions)
		if g := t.group; g != nil {
			_, s.HookOwed = g.owing[t]
			switch {
			case s.HookOwed && g.failure != nil:
				s.HookFailed, s.HookError = true, g.failure.Error()
				s.Printed = s.Printed || printed(g.failure)
			case s.HookOwed && g.untried:
				s.HookError = fmt.Sprintf("hook: %s: owed since before the agent started", g.hook)
			}
		}
		all[i] = s
	}
	return all
}

// Ready reports whether every target was rendered, the last attempt of each succeeded, no hook
// has failed, and none is owed since before this process without having been run. Otherwise it says
// why not, one reason for each target.
func (r *Renderer) Ready() (bool, []string) {
	var reasons []string
	for _, s := range r.Status() {
		switch {
		case s.State == Pending:
			reasons = append(reasons, fmt.Sprintf("%s: not rendered yet", s.Path))
		case s.State != Current:
			reasons = append(reasons, fmt.Sprintf("%s: %s: %s", s.Path, s.State, s.Error))
		case s.HookError != "":
			reasons = append(reasons, fmt.Sprintf("%s: %s", s.Path, s.HookError))
		}
	}
	return len(reasons) == 0, reasons
}
