package rotation

import "time"

// Hasten shortens the pauses between attempts and the time that others are waited for.
func (r *Rotator) Hasten(pause, lease time.Duration) {
	for _, j := range r.jobs {
		j.pause, j.margin = pause, lease-j.Set.timeout()-j.Test.timeout()
	}
}

// Next is when a rotation begins that follows the one at last.
func (r Rotation) Next(last, now time.Time) time.Time { return r.next(last, now) }
