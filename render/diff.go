package render

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// maxDiffCells bounds the work of comparing two files line by line. Larger ones are shown as
// replaced as a whole, between what they have in common at both ends.
const maxDiffCells = 1 << 22

// maxMaskWork bounds the work of finding out what of an old file may be shown, in bytes that are
// compared. What is beyond it is masked as a whole.
const maxMaskWork = 1 << 28

// FileDiff says how one file would change, also as JSON. It holds no values: in its text every
// value is masked, and of the old content only what the new content has as well is shown.
type FileDiff struct {
	Path      string
	New       bool       // there is no file yet
	Unchecked bool       // it has a check, which did not run and may refuse it
	Lines     []LineDiff `json:",omitempty"`
}

// LineDiff is one line that would go or come.
type LineDiff struct {
	Removed bool // otherwise added
	Number  int  // from 1; in the old file when removed, in the new one otherwise
	Text    string
}

// String returns the difference for people, a header and one line for each line.
func (d FileDiff) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", d.Path)
	if d.New {
		b.WriteString(" (new)")
	}
	b.WriteByte('\n')
	for _, l := range d.Lines {
		sign := "+"
		if l.Removed {
			sign = "-"
		}
		fmt.Fprintf(&b, "%s%4d  %s\n", sign, l.Number, l.Text)
	}
	return b.String()
}

// Diff renders everything, publishes nothing, and returns how the files would change, without
// those that would not. Failures are joined, as RenderOnce does, and do not hide the other
// files.
func (r *Renderer) Diff(ctx context.Context) ([]FileDiff, error) {
	if !r.busy.TryLock() {
		return nil, errBusy
	}
	defer r.busy.Unlock()
	found := make([][]FileDiff, len(r.targets))
	errs := make([]error, len(r.targets))
	r.each(errs, func(i int, t *target) error {
		result, err := r.computePatiently(ctx, t)
		if err != nil {
			return err
		}
		for j, out := range result.outs {
			old, err := t.publisher.readFile(j)
			missing := errors.Is(err, fs.ErrNotExist)
			if err != nil && !missing && !errors.Is(err, fs.ErrPermission) { // what cannot be read is replaced
				return err
			}
			if missing || string(old) != string(out.bytes) {
				found[i] = append(found[i], FileDiff{Path: t.files[j], New: missing, Unchecked: t.check != nil, Lines: diffLines(string(old), out)})
			}
		}
		return nil
	})
	return slices.Concat(found...), r.joinNamed(errs)
}

// maskedLine is a line of an output, split at its values: n values stand between n+1 texts.
type maskedLine struct {
	real  string
	texts []string
}

func (l maskedLine) String() string { return strings.Join(l.texts, masked) }

// size returns how many bytes of the line are no values.
func (l maskedLine) size() (n int) {
	for _, text := range l.texts {
		n += len(text)
	}
	return n
}

// matches reports whether s is the line with perhaps other values.
func (l maskedLine) matches(s string) bool {
	if len(l.texts) == 1 {
		return s == l.real
	}
	first, last := l.texts[0], l.texts[len(l.texts)-1]
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, text := range l.texts[1 : len(l.texts)-1] {
		_, after, ok := strings.Cut(s, text)
		if !ok {
			return false
		}
		s = after
	}
	return true
}

// lines splits the output into lines. A value that spans several lines is in each of them.
func (o *output) lines() []maskedLine {
	all := []maskedLine{{texts: []string{""}}}
	add := func(text string, isValue bool) {
		pieces := strings.Split(text, "\n")
		for i, piece := range pieces {
			if i > 0 {
				all = append(all, maskedLine{texts: []string{""}})
			}
			line := &all[len(all)-1]
			line.real += piece
			switch {
			case !isValue:
				line.texts[len(line.texts)-1] += piece
			case piece != "" || 0 < i && i < len(pieces)-1:
				line.texts = append(line.texts, "")
			}
		}
	}
	at := 0
	for _, v := range o.values {
		add(string(o.bytes[at:v.from]), false)
		add(string(o.bytes[v.from:v.to]), true)
		at = v.to
	}
	add(string(o.bytes[at:]), false)
	if all[len(all)-1].real == "" { // a line break ends the last line
		all = all[:len(all)-1]
	}
	return all
}

// diffLines compares old with out.
func diffLines(old string, out *output) []LineDiff {
	fresh := out.lines()
	var was []string
	if old != "" {
		was = strings.Split(strings.TrimSuffix(old, "\n"), "\n")
	}
	start := 0
	for start < len(was) && start < len(fresh) && was[start] == fresh[start].real {
		start++
	}
	a, b := was[start:], fresh[start:]
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1].real {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}

	var diff []LineDiff
	mask := oldMasker{fresh: fresh, work: maxMaskWork}
	i, j := 0, 0
	for _, same := range append(commonLines(a, b), [2]int{len(a), len(b)}) {
		for ; i < same[0]; i++ {
			diff = append(diff, LineDiff{Removed: true, Number: start + i + 1, Text: mask.line(a[i])})
		}
		for ; j < same[1]; j++ {
			diff = append(diff, LineDiff{Number: start + j + 1, Text: b[j].String()})
		}
		i, j = i+1, j+1
	}
	return diff
}

// commonLines returns the pairs of a longest common subsequence, in order.
func commonLines(a []string, b []maskedLine) [][2]int {
	if len(a)*len(b) > maxDiffCells {
		return nil
	}
	width := len(b) + 1
	length := make([]int32, (len(a)+1)*width) // of the rest from (i, j) on
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j].real {
				length[i*width+j] = length[(i+1)*width+j+1] + 1
			} else {
				length[i*width+j] = max(length[(i+1)*width+j], length[i*width+j+1])
			}
		}
	}
	var pairs [][2]int
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j].real:
			pairs = append(pairs, [2]int{i, j})
			i, j = i+1, j+1
		case length[(i+1)*width+j] >= length[i*width+j+1]:
			i++
		default:
			j++
		}
	}
	return pairs
}

// oldMasker masks the values of lines of the old file. Nothing says which bytes those are, so only
// text that a line of the new content has as well is shown.
type oldMasker struct {
	fresh []maskedLine
	work  int // how many bytes may still be compared
}

// line returns a line of the old file, masked.
func (m *oldMasker) line(line string) string {
	if line == "" {
		return ""
	}
	best, size := masked, 0
	for _, l := range m.fresh {
		if m.work -= len(line) + 1; m.work < 0 {
			return masked
		}
		if n := l.size(); n > size && l.matches(line) {
			best, size = l.String(), n
		}
	}
	return best
}
