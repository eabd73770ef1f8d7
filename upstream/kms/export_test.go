package kms

import "time"

// HurryUp makes a source look, check, retry and renew within milliseconds.
func HurryUp(s *CredentialSource) {
	s.pace = pace{
		check: 20 * time.Millisecond, trust: 2 * time.Minute, look: 10 * time.Millisecond,
		pause: 20 * time.Millisecond, maxPause: 50 * time.Millisecond,
		renew: time.Millisecond, maxRenew: 5 * time.Millisecond,
	}
}
