package rotation_test

import (
	"testing"
	"time"

	"secretagent/agent/rotation"
)

func at(t *testing.T, text string) time.Time {
	t.Helper()
	moment, err := time.Parse(time.RFC3339, text)
	must(t, err)
	return moment
}

func TestNextBeginsInTheWindow(t *testing.T) {
	night := &rotation.Window{From: "02:00", To: "04:00", Zone: "Europe/Berlin"}
	for name, c := range map[string]struct {
		window    *rotation.Window
		last, now string
		want      string
	}{
		"no window":                         {nil, "2026-01-01T12:00:00Z", "2026-01-01T12:00:00Z", "2026-01-31T12:00:00Z"},
		"no window, overdue":                {nil, "2026-01-01T12:00:00Z", "2026-06-01T12:00:00Z", "2026-01-31T12:00:00Z"},
		"before it":                         {night, "2026-01-01T00:10:00Z", "2026-01-01T12:00:00Z", "2026-01-31T01:00:00Z"},
		"inside":                            {night, "2026-01-01T02:30:00Z", "2026-01-01T12:00:00Z", "2026-01-31T02:30:00Z"},
		"at its end":                        {night, "2026-01-01T03:00:00Z", "2026-01-01T12:00:00Z", "2026-02-01T01:00:00Z"},
		"overdue, nobody was there":         {night, "2026-01-01T00:10:00Z", "2026-02-07T12:00:00Z", "2026-02-08T01:00:00Z"},
		"overdue, now":                      {night, "2026-01-01T00:10:00Z", "2026-02-08T02:00:00Z", "2026-01-31T01:00:00Z"},
		"clocks go forward, 02:00 is not":   {night, "2026-02-26T12:00:00Z", "2026-03-01T00:00:00Z", "2026-03-29T01:00:00Z"}, // 03:00 of summer time
		"clocks go forward, none that day":  {&rotation.Window{From: "02:10", To: "02:50", Zone: "Europe/Berlin"}, "2026-02-26T12:00:00Z", "2026-03-01T00:00:00Z", "2026-03-30T00:10:00Z"},
		"clocks go back, 02:00 comes twice": {night, "2026-09-24T12:00:00Z", "2026-09-25T00:00:00Z", "2026-10-25T00:00:00Z"},
		"over midnight":                     {&rotation.Window{From: "23:00", To: "01:00"}, "2026-01-01T22:00:00Z", "2026-01-01T22:00:00Z", "2026-01-31T23:00:00Z"},
		"over midnight, inside":             {&rotation.Window{From: "23:00", To: "01:00"}, "2026-01-01T00:30:00Z", "2026-01-01T22:00:00Z", "2026-01-31T00:30:00Z"},
		"no summer time":                    {&rotation.Window{From: "02:00", To: "04:00", Zone: "Asia/Shanghai"}, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-31T18:00:00Z"},
	} {
		r := rotation.Rotation{Secret: secret, Every: 30 * 24 * time.Hour, Window: c.window}
		if got := r.Next(at(t, c.last), at(t, c.now)); !got.Equal(at(t, c.want)) {
			t.Errorf("%s: next at %s, want %s", name, got.UTC().Format(time.RFC3339), c.want)
		}
		r.Jitter = time.Hour
		first := r.Next(at(t, c.last), at(t, c.now))
		if late := first.Sub(at(t, c.want)); late < 0 || late >= time.Hour || !first.Equal(r.Next(at(t, c.last), at(t, c.now))) {
			t.Errorf("%s: with jitter %s later", name, late)
		}
	}
}

func TestJitterStaysInTheWindowAndSpreads(t *testing.T) {
	r := rotation.Rotation{Secret: secret, Every: 24 * time.Hour, Jitter: 20 * time.Hour, Window: &rotation.Window{From: "02:00", To: "02:30"}}
	last, seen := at(t, "2026-01-01T00:00:00Z"), map[int]bool{}
	for range 100 {
		last = last.Add(24 * time.Hour)
		next := r.Next(last, last)
		if minute := next.Hour()*60 + next.Minute(); minute < 120 || minute >= 150 {
			t.Fatalf("next at %s", next)
		} else {
			seen[minute] = true
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d minutes of 30", len(seen))
	}
}
