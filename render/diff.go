package render

import (
	"bytes"
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

// FileDiff says how one file would change. It holds no values: in its text every value is
// masked, and of the old content only what the new content has as well is shown.
type FileDiff struct {
	Path  string
	New   bool // there is no file yet
	Lines []LineDiff
}

// LineDiff is one line that would go or come.
type LineDiff struct {
	Removed bool // otherwise added
	Number  int  // from 1; in the old file when Removed, in the new one otherwise
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
			if err != nil && !missing {
				return err
			}
			if missing || string(old) != string(out.bytes) {
				found[i] = append(found[i], FileDiff{Path: t.files[j], New: missing, Lines: diffLines(string(old), out)})
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
	var all []maskedLine
	values := o.values
	for from := 0; from < len(o.bytes); {
		to := len(o.bytes)
		if i := bytes.IndexByte(o.bytes[from:], '\n'); i >= 0 {
			to = from + i
		}
		line := maskedLine{real: string(o.bytes[from:to])}
		at := from
		for len(values) > 0 && values[0].from < to {
			v := values[0]
			line.texts = append(line.texts, string(o.bytes[at:max(at, v.from)]))
			at = min(v.to, to)
			if v.to > to {
				break // goes on in the next line
			}
			values = values[1:]
		}
		line.texts = append(line.texts, string(o.bytes[at:to]))
		all = append(all, line)
		from = to + 1
		for len(values) > 0 && values[0].to <= from {
			values = values[1:]
		}
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
	i, j := 0, 0
	for _, same := range append(commonLines(a, b), [2]int{len(a), len(b)}) {
		for ; i < same[0]; i++ {
			diff = append(diff, LineDiff{Removed: true, Number: start + i + 1, Text: maskOld(a[i], fresh)})
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

// maskOld returns a line of the old file with its values masked. Nothing says which bytes
// those are, so only text that a line of the new content has as well is shown.
func maskOld(line string, fresh []maskedLine) string {
	best, size := masked, 0
	if line == "" {
		return ""
	}
	for _, l := range fresh {
		if n := len(strings.Join(l.texts, "")); n > size && l.matches(line) {
			best, size = l.String(), n
		}
	}
	return best
}
