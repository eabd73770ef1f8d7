package render

import (
	"fmt"
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

// TargetStatus is the state of one target or set. It holds no values.
type TargetStatus struct {
	Name       string // path of the file, or of the folder of a set
	Files      []string
	State      State
	Error      string    // why State is Failed or Removed; empty otherwise
	Failures   int       // in a row
	LastTry    time.Time // zero: never
	LastChange time.Time // when something was published last, by this Renderer; zero: never
	NextTry    time.Time // of what failed; zero: none is planned

	// Versions is what the published content is made of.
	Versions []SecretVersion

	// HookOwed says that the hook has not succeeded since the last change; HookError is why
	// its last run failed.
	HookOwed  bool
	HookError string
}

// SecretVersion says which version of a secret is in a file.
type SecretVersion struct {
	SecretName upstream.SecretName
	VersionID  upstream.VersionID
}

// Status returns the state of every target and set, in the order of the options.
func (r *Renderer) Status() []TargetStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]TargetStatus, len(r.targets))
	for i, t := range r.targets {
		s := TargetStatus{
			Name: t.name, Files: t.files, State: t.state, Failures: t.failures,
			LastTry: t.lastTry, LastChange: t.lastChange, NextTry: t.nextTry,
		}
		if t.failure != nil {
			s.Error = t.failure.Error()
		}
		for _, v := range t.values {
			s.Versions = append(s.Versions, SecretVersion{v.SecretName, v.VersionID})
		}
		if g := t.group; g != nil {
			_, s.HookOwed = g.owing[t]
			if s.HookOwed && g.failure != nil {
				s.HookError = g.failure.Error()
			}
		}
		all[i] = s
	}
	return all
}

// Ready reports whether every target was rendered, the last attempt of each succeeded, and no
// hook has failed. Otherwise it says why not, one reason for each target.
func (r *Renderer) Ready() (bool, []string) {
	var reasons []string
	for _, s := range r.Status() {
		switch {
		case s.State == Pending:
			reasons = append(reasons, fmt.Sprintf("%s: not rendered yet", s.Name))
		case s.State != Current:
			reasons = append(reasons, fmt.Sprintf("%s: %s: %s", s.Name, s.State, s.Error))
		case s.HookError != "":
			reasons = append(reasons, fmt.Sprintf("%s: %s", s.Name, s.HookError))
		}
	}
	return len(reasons) == 0, reasons
}
