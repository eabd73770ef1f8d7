package rotation

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"secretagent/upstream"
)

// Window is a part of the day in which rotations begin.
type Window struct {
	From, To string // 02:00; when To is earlier the window goes over midnight
	Zone     string // a name of the IANA database, UTC or Local; empty: UTC
}

// clock reads a time of day in minutes.
func clock(text string) (int, error) {
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0, errors.New(`must be a time of day such as "02:00"`)
	}
	return t.Hour()*60 + t.Minute(), nil
}

func (w *Window) validate() error {
	var p upstream.OptionErrors
	for _, at := range []struct{ key, text string }{{"from", w.From}, {"to", w.To}} {
		if _, err := clock(at.text); err != nil {
			p.Addf(at.key, at.text, "%v", err)
		}
	}
	from, _ := clock(w.From)
	if to, err := clock(w.To); err == nil && from == to { // in minutes: 2:00 is 02:00
		p.Addf("to", w.To, "must be another time than from: the window would be empty")
	}
	if _, err := time.LoadLocation(w.Zone); err != nil {
		reason := strings.TrimPrefix(err.Error(), "unknown time zone "+w.Zone)
		p.Addf("zone", w.Zone, "is no time zone that is known here%s: use a name such as UTC or Asia/Shanghai, and install tzdata where there is none", reason)
	}
	return p.Err()
}

// maxSearch is longer than any two windows are apart, also where a clock change skips one.
const maxSearch = 72 * time.Hour

// contains returns what reports whether the clocks of the zone show a time inside the window. It
// reads the zone once, which is a file.
func (w *Window) contains() func(time.Time) bool {
	zone, err := time.LoadLocation(w.Zone)
	if err != nil {
		zone = time.UTC // was there when it was checked
	}
	from, _ := clock(w.From)
	to, _ := clock(w.To)
	return func(t time.Time) bool {
		t = t.In(zone)
		now := t.Hour()*60 + t.Minute()
		if from < to {
			return from <= now && now < to
		}
		return now >= from || now < to
	}
}

// next returns the first moment from t on that is inside the window, and the end of the window.
// It looks at each minute: clocks are set forward and back by whole minutes, and a window may begin in a
// time that a day does not have.
func (w *Window) next(t time.Time) (from, to time.Time) {
	contains, end := w.contains(), t.Add(maxSearch)
	from = t
	for !contains(from) && from.Before(end) {
		from = from.Truncate(time.Minute).Add(time.Minute)
	}
	for to = from; contains(to) && to.Before(end); {
		to = to.Truncate(time.Minute).Add(time.Minute)
	}
	return from, to
}

// fit returns the moment from t on at which a rotation begins that is due at t.
func (r *Rotation) fit(t time.Time) time.Time {
	room := r.Jitter
	if r.Window != nil {
		var end time.Time
		t, end = r.Window.next(t)
		room = min(room, end.Sub(t)-time.Second)
	}
	if room <= 0 {
		return t
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", r.Secret.Name(), t.Unix()))
	return t.Add(time.Duration(binary.BigEndian.Uint64(sum[:]) % uint64(room)))
}

// next returns when the rotation begins that follows the one at last. All agents agree on it,
// but for the time that their clocks differ by.
func (r *Rotation) next(last, now time.Time) time.Time {
	at := r.fit(last.Add(r.Every))
	if at.Before(now) && r.Window != nil && !r.Window.contains()(now) {
		return r.fit(now) // nobody was there in the window
	}
	return at
}
