package command

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"secretagent/upstream"
)

func newApp(stdin string) (*app, *bytes.Buffer, *bytes.Buffer) {
	var stdout, stderr bytes.Buffer
	return &app{Process: Process{
		Stdin: strings.NewReader(stdin), Stdout: &stdout, Stderr: &stderr, Getenv: func(string) string { return "" }, Build: Build{Version: "1.2.3"},
	}}, &stdout, &stderr
}

// TestEveryVerbExplainsItself holds that every verb says at length what it does, with an
// example that calls it, and that every flag has a description.
func TestEveryVerbExplainsItself(t *testing.T) {
	a, _, _ := newApp("")
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if len(cmd.Short) < 10 || len(cmd.Long) <= len(cmd.Short) {
			t.Errorf("%s: no explanation", cmd.CommandPath())
		}
		if cmd.Runnable() && !cmd.HasSubCommands() && !strings.Contains(cmd.Long+cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s: no example", cmd.CommandPath())
		}
		for line := range strings.SplitSeq(cmd.Long+"\n"+cmd.Example, "\n") {
			if len([]rune(line)) > 100 {
				t.Errorf("%s: a line of the help has more than 100 characters: %s", cmd.CommandPath(), line)
			}
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: --%s has no description", cmd.CommandPath(), f.Name)
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(a.root())
}

// TestVerbsThatPrintDataSpeakJSON names the verbs without --output: they print nothing, or
// nothing but a value or text for the shell.
func TestVerbsThatPrintDataSpeakJSON(t *testing.T) {
	a, _, _ := newApp("")
	silent := "backup restore secret-export run exec init secret-watch config-convert secret-stage secret-update secret-restore secret-tag secret-untag secret-policy-get secret-policy-set secret-random-password keys-remove completion-bash completion-fish completion-powershell completion-zsh"
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		name := strings.ReplaceAll(strings.TrimPrefix(cmd.CommandPath(), "secretagent "), " ", "-")
		hasJSON := cmd.Flags().Lookup("output") != nil
		if isSilent := strings.Contains(" "+silent+" ", " "+name+" "); !cmd.HasSubCommands() && hasJSON == isSilent {
			t.Errorf("%s: --output %t", cmd.CommandPath(), hasJSON)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(a.root())
}

func TestFieldOf(t *testing.T) {
	const object = `{"text":"hunter2\n","null":null}`
	ref := upstream.SecretRef{SecretName: "app/db"}
	for _, c := range []struct{ data, field, want, err string }{
		{object, "text", "hunter2\n", ""},
		{object, "null", "", `app/db: the field "null" is null`},
		{object, "other", "", `app/db: there is no field "other" in the value`},
		{"hunter2", "text", "", "app/db: the value is no JSON object, so it has no fields"},
	} {
		got, err := fieldOf(ref, upstream.NewSecretData([]byte(c.data)), c.field)
		if string(got) != c.want || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s of %s: %q, %v", c.field, c.data, got, err)
		}
		if err != nil && !errors.Is(err, upstream.ErrNotFound) {
			t.Errorf("%s: %v is not ErrNotFound", c.field, err)
		}
	}
}

func TestReadingPagesEnds(t *testing.T) {
	for _, c := range []struct {
		name         string
		items, total int
		wantCalls    int
		wantErr      bool
	}{
		{"one page", 5, 5, 1, false},
		{"several pages", 5, 12, 3, false},
		{"nothing", 0, 0, 1, false},
		{"fewer than promised", 0, 7, 1, false},
		{"without end", 1, 1 << 30, maxPages, true},
	} {
		calls := 0
		_, err := allPages(func(page upstream.Page) ([]int, int, error) {
			if calls++; page.Number != calls || page.Size != pageSize {
				t.Fatalf("%s: page %+v in call %d", c.name, page, calls)
			}
			return make([]int, c.items), c.total, nil
		})
		if calls != c.wantCalls || (err != nil) != c.wantErr {
			t.Errorf("%s: %d calls, %v", c.name, calls, err)
		}
	}
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
		code int
	}{
		{usagef("no value"), "secretagent: no value\nhint: see secretagent x --help\n", 2},
		{withHint(&upstream.Error{Err: upstream.ErrNotFound}, "make it"), "secretagent: not found\nhint: make it\n", 3},
		{&upstream.Error{Err: upstream.ErrAccessDenied}, "secretagent: access denied\n", 4},
		{&upstream.Error{Err: upstream.ErrThrottled}, "secretagent: throttled\nhint: ask again later\n", 5},
		{context.DeadlineExceeded, "secretagent: context deadline exceeded\n", 5},
		{context.Canceled, "secretagent: context canceled\n", 1},
		{errors.Join(errors.New("a"), errors.New("b.")), "secretagent: a; b\n", 1},
		{withHint(usagef("both"), "only this"), "secretagent: both\nhint: only this\n", 2},
	} {
		a, stdout, stderr := newApp("")
		if code := a.report(c.err, "secretagent x"); code != c.code || stderr.String() != c.want || stdout.Len() > 0 {
			t.Errorf("%v: code %d, stderr %q, stdout %q", c.err, code, stderr, stdout)
		}
	}
}

func TestConfirmNeedsATerminal(t *testing.T) {
	a, _, stderr := newApp("y\n")
	err := a.confirm("delete it?", "--yes")
	if _, usage := errors.AsType[usageError](err); !usage || !strings.Contains(err.Error(), "--yes") || stderr.Len() > 0 {
		t.Errorf("error %v, stderr %q", err, stderr)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	a.Stdin = null
	if _, usage := errors.AsType[usageError](a.confirm("delete it?", "--yes")); !usage {
		t.Error("the null device is taken for a terminal")
	}
}

// brokenPipe fails every write.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestABrokenPipeIsAFailure(t *testing.T) {
	var stderr bytes.Buffer
	code := Main(t.Context(), Process{
		Args: []string{"version"}, Stdin: strings.NewReader(""), Stdout: brokenPipe{}, Stderr: &stderr,
		Getenv: func(string) string { return "" }, Build: Build{Version: "1.2.3"},
	})
	if code != 1 || !strings.Contains(stderr.String(), "write the answer") {
		t.Errorf("code %d, stderr %s", code, &stderr)
	}
}
