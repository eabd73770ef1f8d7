package kmsserver

import (
	"maps"
	"slices"
	"time"

	"secretagent/upstream"
)

// Tuned are options with what only tests change.
type Tuned struct {
	Options
	Limits limits
	Clock  func() time.Time
}

// StandardLimits are the limits of a server that New makes.
var StandardLimits = standardLimits

// NewTuned is New with limits and a clock.
func NewTuned(m upstream.Manager, o Tuned) (*Server, error) {
	return newServer(m, o.Options, o.Limits, o.Clock)
}

// SetAccessKeys prepares access keys and sets them.
func (s *Server) SetAccessKeys(keys []AccessKey) error {
	set, err := s.PrepareAccessKeys(keys)
	if err == nil {
		set()
	}
	return err
}

// RemovedKeys returns how many keys are remembered that are there no more.
func (s *Server) RemovedKeys() int { return len(s.keys.Load().removed) }

// Actions returns the names of the actions that are served or refused with a reason.
func Actions() []string { return slices.Sorted(maps.Keys(actions)) }
