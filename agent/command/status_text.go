package command

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"secretagent/agent"
	"secretagent/agent/child"
	"secretagent/upstream"
)

// screenWidth is how wide the picture of a status is at most.
const screenWidth = 80

// palette colours text when it is true.
type palette bool

// mood is what a cell says about the state of things.
type mood uint8

const (
	plain mood = iota
	good
	doubtful
	bad
	heading
)

func (p palette) paint(m mood, text string) string {
	code := [...]string{"", "32", "33", "31", "1"}[m]
	if !p || code == "" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// statusText draws s for people. All of it fits screenWidth, and no text of others, such as
// an error, can control the terminal.
func statusText(s agent.Status, p palette) string {
	b := &picture{palette: p, now: s.Time}
	state, m := "ready", good
	if !s.Ready {
		state, m = "not ready", bad
	}
	b.line(p.paint(heading, "secretagent "+printable(s.Version)) + "  " + p.paint(m, state) + "  up " + short(time.Duration(s.UptimeSeconds*float64(time.Second))))
	if s.PID != 0 {
		b.wrap("", fmt.Sprintf("pid %d on %s, configuration %s", s.PID, s.Host, s.Config), plain)
	}
	b.upstream(s)
	for _, problem := range problems(s) {
		b.wrap("! ", problem, bad)
	}
	if r := s.Reload; r != nil {
		b.line("configuration reloaded " + map[bool]string{false: "", true: "in vain "}[r.Failed] + b.ago(r.At) + " ago")
	}
	b.secrets(s)
	b.files(s.Files)
	b.child(s.Child)
	b.rotations(s.Rotations)
	b.callers(s.Callers)
	if s.TokenFrom != "" {
		b.line(tokenFrom + printable(s.TokenFrom))
	}
	b.listeners(s.Listeners)
	return b.String()
}

// statusUnknown says that the agent cannot be asked.
func statusUnknown(err error, p palette) string {
	b := &picture{palette: p}
	b.wrap("", err.Error(), bad)
	if hint := hintFor(err, "secretagent status"); hint != "" {
		b.wrap("", "hint: "+hint, plain)
	}
	return b.String()
}

// picture collects lines.
type picture struct {
	strings.Builder
	palette
	now time.Time
}

func (b *picture) line(text string) { b.WriteString(strings.TrimRight(text, " ") + "\n") }

// wrap writes text in lines of at most screenWidth, those after the first indented.
func (b *picture) wrap(lead, text string, m mood) {
	line := []rune(lead)
	begin := len(line) // of its words
	flush := func() {
		b.line(b.paint(m, string(line)))
		line, begin = []rune("  "), 2
	}
	for _, word := range strings.Fields(printable(text)) {
		if len(line) > begin && len(line)+1+utf8.RuneCountInString(word) > screenWidth {
			flush()
		}
		if len(line) > begin {
			line = append(line, ' ')
		}
		for _, r := range word {
			if len(line) == screenWidth {
				flush()
			}
			line = append(line, r)
		}
	}
	if len(line) > begin {
		flush()
	}
}

// ago returns the time from t to the status; "-" when t is unknown.
func (b *picture) ago(t time.Time) string { return between(t, b.now, t) }

// until returns the time from the status to t; "-" when t is unknown.
func (b *picture) until(t time.Time) string { return between(b.now, t, t) }

func between(from, to, known time.Time) string {
	if known.IsZero() {
		return "-"
	}
	return short(to.Sub(from))
}

// problems returns what a person should look at.
func problems(s agent.Status) (list []string) {
	known := map[string]bool{}
	for _, p := range s.Problems {
		known[p.Subject] = true
		list = append(list, p.Subject+": "+p.Reason)
	}
	for _, f := range s.Files {
		switch {
		case known["file "+f.Path]:
		case f.State == agent.FileFailed:
			list = append(list, "file "+f.Path+": "+cmp.Or(f.Error, "the log says why"))
		case f.HookFailed:
			list = append(list, "file "+f.Path+": its hook failed: "+cmp.Or(f.HookError, "the log says why"))
		}
	}
	return list
}

func (b *picture) upstream(s agent.Status) {
	u := s.Upstream
	var parts []string
	empty := func(text string) bool { return text == "" }
	say := func(words ...string) { parts = append(parts, strings.Join(slices.DeleteFunc(words, empty), " ")) }
	m := plain
	say("upstream:", u.Kind, when(u.Outage != "", "is DOWN: "+cmp.Or(u.Cause, u.Outage)))
	if end := servedUntil(s); u.Outage != "" && !end.IsZero() {
		say("last good values are served, the first until " + b.moment(end))
	}
	if l := u.Local; l != nil {
		say(fmt.Sprintf("%d reads, %d writes", l.Reads, l.Writes))
		say(when(l.WritesQueued > 0, fmt.Sprintf("%d of at most %d writes in line", l.WritesQueued, l.WritesQueueLimit)))
		b.keys(say, l.Keys)
	}
	if e := u.Etcd; e != nil {
		say(fmt.Sprintf("%d writes", e.Writes))
		say(when(e.WatchUp, "changes are told by its watch"), when(!e.WatchUp, "the watch is BROKEN for "+b.ago(e.WatchSince)+": "+e.WatchCause))
		say(when(e.Unreadable > 0, many(e.Unreadable, "secret")+" CANNOT be read"))
		b.keys(say, e.Keys)
		if !e.WatchUp || e.Unreadable > 0 || len(e.Keys.Lacking) > 0 {
			m = doubtful
		}
	}
	if c := u.Alibaba; c != nil {
		for _, e := range c.Endpoints {
			say(e.Name, e.State, when(e.Name == c.Endpoint, "(in use)"), when(e.State != "ready" && e.LastFailure != "", "after "+cmp.Or(e.LastCause, e.LastFailure)))
		}
		credential := c.Credential
		say("credential", credential.Type,
			when(credential.Source != "" && credential.Source != credential.Type, "from "+credential.Source),
			when(!credential.RenewedAt.IsZero(), "renewed "+b.ago(credential.RenewedAt)+" ago"),
			when(!credential.Expires.IsZero(), "ends in "+b.until(credential.Expires)),
			when(credential.Error != "", "FAILS: "+credential.Error))
		say("breaker", c.Breaker.State, when(c.Breaker.Until.After(b.now), "for "+b.until(c.Breaker.Until)))
		say(fmt.Sprintf("budget %.3g of %.3g calls/s, %.0f at once", c.Budget.CallsPerSecond, c.Budget.MaxCallsPerSecond, math.Floor(c.Budget.Calls)))
		say(when(c.Budget.Waiting > 0, fmt.Sprintf("%d calls wait for it", c.Budget.Waiting)))
		say(when(c.Budget.PausedUntil.After(b.now), "paused for "+b.until(c.Budget.PausedUntil)))
		say(when(c.Watch.State == "on", "changes are told by "+c.Watch.Endpoint), when(c.Watch.State == "broken", "changes are NOT told by "+c.Watch.Endpoint+": "+cmp.Or(c.Watch.LastCause, c.Watch.LastFailure)))
		if c.Breaker.State != "closed" || credential.Error != "" || c.Watch.State == "broken" {
			m = doubtful
		}
	}
	if u.Outage != "" {
		m = bad
	}
	b.wrap("", strings.Join(slices.DeleteFunc(parts, empty), "; "), m)
}

// keys says what the keys of a built-in backend are to do, where that is worth a word.
func (b *picture) keys(say func(words ...string), k agent.KeyState) {
	say(when(len(k.Lacking) > 0, "the keyring LACKS what others use: key "+strings.Join(k.Lacking, ", ")))
	if r := k.Rotation; r != nil {
		say("a rotation to key "+r.Key+" waits, for "+b.ago(r.Since), when(len(r.Waiting) > 0, "for "+strings.Join(r.Waiting, ", ")))
	}
	if r := k.Reencryption; r != nil {
		say(fmt.Sprintf("%d of %d secrets are re-encrypted under key %s", r.Done, r.Total, r.Key), when(r.By != "", "by "+r.By))
	}
}

// servedUntil returns when the first of the secrets is served no longer, unless the upstream answers; zero: none ends.
func servedUntil(s agent.Status) (first time.Time) {
	for _, e := range s.Secrets {
		if end := e.ServedUntil; !end.IsZero() && (first.IsZero() || end.Before(first)) {
			first = end
		}
	}
	return first
}

// moment returns a point in time by the clock of whoever looks, with the day where it is another one.
func (b *picture) moment(t time.Time) string {
	local, now := t.Local(), b.now.Local()
	if local.YearDay() == now.YearDay() && local.Year() == now.Year() {
		return local.Format("15:04")
	}
	return local.Format("2006-01-02 15:04")
}

// when returns text if is.
func when(is bool, text string) string {
	if !is {
		return ""
	}
	return text
}

func (b *picture) secrets(s agent.Status) {
	t := table{columns: []column{{name: "SECRET", least: 20}, {name: "VERSION", least: 8}, {name: "AGE"}, {name: "FRESH"}, {name: "NEXT"}, {name: "ASKED", least: 8}, {name: "STATE", least: 18}}}
	// What is declared comes first; names that somebody has asked for in vain are told in one line.
	var asked, causes []string // causes: of each row, empty where its state says all
	for _, e := range slices.SortedStableFunc(slices.Values(s.Secrets), declaredFirst) {
		if !e.Held && !e.Declared && e.Subscribers == 0 {
			asked = append(asked, strings.TrimSuffix(e.Secret, ":"+string(upstream.ACSCurrent)))
			continue
		}
		state, m := "fresh", good
		switch {
		case !e.Held && e.Error == "":
			state, m = "not fetched yet", doubtful
		case !e.Held:
			state, m = cmp.Or(e.Cause, e.Error), bad
		case !e.Fresh && !e.ServedUntil.IsZero():
			state, m = "stale, "+b.until(e.ServedUntil)+" left", bad
		case !e.Fresh:
			state, m = "expired", plain // asked for again at the next lookup
		case !e.ServedUntil.IsZero():
			state, m = "fresh, "+b.until(e.ServedUntil)+" left", doubtful
		}
		why := cmp.Or(e.Cause, e.Error)
		if s.Upstream.Outage != "" && why == cmp.Or(s.Upstream.Cause, s.Upstream.Outage) {
			why = "" // the upstream as a whole has said it already
		}
		if e.Held && why != "" {
			state += ": " + why
		}
		if e.Failures > 1 {
			state += " ×" + strconv.Itoa(e.Failures)
		}
		name := strings.TrimSuffix(e.Secret, ":"+string(upstream.ACSCurrent))
		t.add(m, name, cmp.Or(versionText(e), "-"), b.ago(e.ConfirmedAt), b.until(e.FreshUntil), b.until(e.NextRefresh), b.asked(e), state)
		causes = append(causes, why)
	}
	b.section(t)
	b.wholeCauses(t, causes)
	if len(asked) > 0 {
		b.wrap("", "asked for, and not there: "+someOf(asked), plain)
	}
	if s.SecretsUnnamed > 0 {
		b.line(fmt.Sprintf("and %d whose name a template computes", s.SecretsUnnamed))
	}
	if s.SecretsOmitted > 0 {
		b.line(fmt.Sprintf("and %d more", s.SecretsOmitted))
	}
}

// wholeCauses writes below t each cause that its last column has no room for, once, with the names of its rows.
func (b *picture) wholeCauses(t table, causes []string) {
	last := len(t.columns) - 1
	room := t.widths()[last]
	names := map[string][]string{} // cause → first cells
	var order []string
	for i, r := range t.rows {
		if causes[i] == "" || utf8.RuneCountInString(r.cells[last]) <= room {
			continue
		}
		if names[causes[i]] == nil {
			order = append(order, causes[i])
		}
		names[causes[i]] = append(names[causes[i]], r.cells[0])
	}
	for _, why := range order[:min(len(order), causesShown)] {
		b.wrap("", someOf(names[why])+": "+why, bad)
	}
	if more := len(order) - causesShown; more > 0 {
		b.line(fmt.Sprintf("and %d more causes", more))
	}
}

const (
	namesShown  = 3 // of many names
	causesShown = 8 // of many causes
)

// someOf lists the first names, and says how many more there are.
func someOf(names []string) string {
	if more := len(names) - namesShown; more > 0 {
		names = append(names[:namesShown:namesShown], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// declaredFirst orders secrets that the configuration declares before those that are held because of a lookup.
func declaredFirst(a, b agent.SecretStatus) int {
	switch {
	case a.Declared == b.Declared:
		return 0
	case a.Declared:
		return -1
	}
	return 1
}

// versionText returns the version and the labels on it that were not asked for.
func versionText(e agent.SecretStatus) string {
	text := string(e.VersionID)
	for _, label := range e.VersionStages {
		if label != e.VersionStage {
			text += " +" + string(label)
		}
	}
	return text
}

// asked says when a secret was asked for last, and by whom where that may be known.
func (b *picture) asked(e agent.SecretStatus) string {
	if e.AskedAt.IsZero() {
		return "-"
	}
	return strings.TrimSpace(b.ago(e.AskedAt) + " " + e.AskedBy)
}

// callers draws who may ask.
func (b *picture) callers(callers []agent.CallerStatus) {
	t := table{columns: []column{{name: "CALLER", least: 20}, {name: "SEEN"}, {name: "CONNS"}, {name: "LOOKUPS"}, {name: "REFUSED"}, {name: "OLD TOKEN"}}}
	for _, c := range callers {
		old, m := "-", plain
		if !c.OldTokenUntil.IsZero() {
			old, m = b.until(c.OldTokenUntil)+" left", doubtful
		}
		seen := b.ago(c.LastSeen)
		if c.ShutOut != "" {
			seen, m = "shut out", bad
		}
		t.add(m, c.Name, seen, strconv.Itoa(c.Connections), strconv.FormatUint(c.Lookups, 10), strconv.FormatUint(c.Refusals, 10), old)
	}
	b.section(t)
}

// soonEnds is how long before its end a certificate draws attention.
const soonEnds = 7 * 24 * time.Hour

func (b *picture) listeners(listeners []agent.ListenerStatus) {
	t := table{columns: []column{{name: "LISTENER"}, {name: "ADDRESS", least: 20, tail: true}, {name: "GUARD"}}}
	for _, l := range listeners {
		guard, m := "callers", plain
		switch {
		case l.Serves == "endpoint":
		case l.Serves == "systemd":
			guard = "root, by unit"
		case l.Serves == "metrics":
			guard = "none"
			if l.Token {
				guard = "token"
			}
		case l.Signed:
			guard = "signature"
		default:
			guard = "file mode"
		}
		if l.TLS {
			guard += ", TLS"
		}
		if ends := l.CertificateExpires; !ends.IsZero() {
			guard += " ends in " + b.until(ends)
			if ends.Sub(b.now) < soonEnds {
				m = bad
			}
		}
		if ends := l.ClientCAExpires; !ends.IsZero() && ends.Sub(b.now) < soonEnds {
			guard, m = guard+", client CA in "+b.until(ends), bad
		}
		t.add(m, l.Serves, l.Address, guard)
	}
	b.section(t)
}

func (b *picture) files(files []agent.FileStatus) {
	t := table{columns: []column{{name: "FILE", least: 20, tail: true}, {name: "CHANGED"}, {name: "HOOK"}, {name: "STATE", least: 10}}}
	for _, f := range files {
		state, m := string(f.State), good
		if f.Failures > 1 {
			state += " ×" + strconv.Itoa(f.Failures)
		}
		hook := "-"
		switch {
		case f.HookFailed:
			hook, m = "failed", bad
		case f.HookOwed:
			hook, m = "owed", doubtful
		}
		switch f.State {
		case agent.FileFailed, agent.FileRemoved:
			m = bad
		case agent.FilePending:
			m = doubtful
		}
		t.add(m, f.Path, b.ago(f.ChangedAt), hook, state)
	}
	b.section(t)
}

func (b *picture) child(c *agent.ChildStatus) {
	if c == nil {
		return
	}
	t := table{columns: []column{{name: "PROGRAM", least: 20, tail: true}, {name: "PID"}, {name: "UP"}, {name: "RESTARTS"}, {name: "STATE", least: 10}}}
	state, m, pid, up := string(c.State), good, "-", "-"
	if c.State == child.Running {
		pid, up = strconv.Itoa(c.PID), b.ago(c.StartedAt)
	} else {
		m = doubtful
	}
	if c.Outdated {
		state, m = state+", old values", doubtful
	}
	if c.Failing {
		state, m = state+", failing", bad
	}
	t.add(m, c.Command, pid, up, strconv.Itoa(c.Restarts), state)
	b.section(t)
	if c.Failing && c.Error != "" {
		b.wrap("! ", c.Error, bad)
	}
}

// rotations draws what is rotated, and why a rotation fails.
func (b *picture) rotations(rotations []agent.RotationStatus) {
	t := table{columns: []column{{name: "ROTATION", least: 20}, {name: "LAST"}, {name: "TOOK"}, {name: "NEXT"}, {name: "STATE", least: 20}}}
	for _, r := range rotations {
		took, next := "-", b.until(r.Next)
		if r.TookSeconds > 0 {
			took = fmt.Sprintf("%.3gs", r.TookSeconds)
		}
		state, m := string(r.State), good
		switch {
		case r.State == agent.RotationFailed:
			state, m = fmt.Sprintf("failed at step %s", r.Step), bad
		case r.Error != "":
			state, m = fmt.Sprintf("step %s fails ×%d", r.Step, r.Attempts), doubtful
		case r.Step != "":
			state, m = fmt.Sprintf("in step %s", r.Step), doubtful
		case r.Next.IsZero():
			state = "by hand"
		}
		t.add(m, string(r.SecretName), b.ago(r.Last), took, next, state)
	}
	b.section(t)
	for _, r := range rotations {
		if r.Error != "" {
			b.wrap("! ", string(r.SecretName)+": "+r.Error, bad)
		}
	}
}

// table is rows under headings; the last column is coloured.
type table struct {
	columns []column
	rows    []row
}

// column may be cut down to least characters when the table is too wide; never when that is
// zero. With tail the end of a text is kept, otherwise its beginning.
type column struct {
	name  string
	least int
	tail  bool
}

type row struct {
	cells []string
	mood  mood
}

func newTable(names ...string) *table {
	t := &table{}
	for _, name := range names {
		t.columns = append(t.columns, column{name: name})
	}
	return t
}

func (t *table) add(m mood, cells ...string) {
	for i := range cells {
		cells[i] = printable(cells[i])
	}
	t.rows = append(t.rows, row{cells, m})
}

// widths returns how wide the columns are: as their content needs, and then the widest of
// those that can be cut are, one character at a time, until the table fits.
func (t *table) widths() []int {
	widths := make([]int, len(t.columns))
	total := 2 * (len(t.columns) - 1)
	for i, c := range t.columns {
		widths[i] = utf8.RuneCountInString(c.name)
		for _, r := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r.cells[i]))
		}
		total += widths[i]
	}
	for ; total > screenWidth; total-- {
		widest := -1
		for i, c := range t.columns {
			if c.least > 0 && widths[i] > c.least && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return widths
}

// section writes t after an empty line; nothing when it has no rows.
func (b *picture) section(t table) {
	if text := t.text(b.palette); text != "" {
		b.WriteString("\n" + text)
	}
}

// text returns the table; nothing when it has no rows.
func (t *table) text(p palette) string {
	if len(t.rows) == 0 {
		return ""
	}
	b := picture{palette: p}
	names := row{mood: heading}
	for _, c := range t.columns {
		names.cells = append(names.cells, c.name)
	}
	widths := t.widths()
	for _, r := range append([]row{names}, t.rows...) {
		var line strings.Builder
		for i, cell := range r.cells {
			cell = fit(cell, widths[i], t.columns[i].tail)
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
			if r.mood == heading || i == len(r.cells)-1 {
				cell = b.paint(r.mood, cell)
			}
			line.WriteString(cell + pad)
		}
		b.line(line.String())
	}
	return b.String()
}

// fit cuts text to width characters and marks where.
func fit(text string, width int, tail bool) string {
	runes := []rune(text)
	switch {
	case len(runes) <= width:
		return text
	case tail:
		return "…" + string(runes[len(runes)-width+1:])
	}
	return string(runes[:width-1]) + "…"
}

// short returns d in at most four characters, such as 250m or 3d; "0s" when it is over.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", min(d/(24*time.Hour), 999))
}

// printable keeps a text that somebody else wrote on one line and from controlling a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return '?'
	}, text)
}
