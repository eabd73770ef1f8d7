package command

import (
	"bufio"
	"bytes"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOnATerminal checks what is for people at a terminal only. The test plays both sides: what
// is written to this end of a terminal comes back as its echo.
func TestOnATerminal(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	defer func() { _ = terminal.Close() }()
	file, err := os.Create(t.TempDir() + "/out")
	must(t, err)
	defer func() { _ = file.Close() }()
	env := map[string]string{}
	a := &app{Process: Process{Stdout: terminal, Getenv: func(name string) string { return env[name] }}}

	// A value gets a newline after it, unless it has one.
	echo := bufio.NewReader(terminal)
	for _, value := range []string{"hunter2", "hunter2\n", "next"} {
		must(t, a.printRaw([]byte(value)))
	}
	for _, want := range []string{"hunter2\r\n", "hunter2\r\n", "next\r\n"} {
		if line, err := echo.ReadString('\n'); err != nil || line != want {
			t.Errorf("%q, %v, want %q", line, err, want)
		}
	}
	a.Stdout = file
	must(t, a.printRaw([]byte("hunter2")))
	if got, err := os.ReadFile(file.Name()); err != nil || string(got) != "hunter2" {
		t.Errorf("in a file: %q, %v", got, err)
	}

	// Colours can be declined.
	for _, c := range []struct {
		stream        *os.File
		noColor, term string
		want          bool
	}{{terminal, "", "xterm", true}, {terminal, "1", "xterm", false}, {terminal, "", "dumb", false}, {file, "", "xterm", false}} {
		env["NO_COLOR"], env["TERM"] = c.noColor, c.term
		if got := a.colored(c.stream); got != c.want {
			t.Errorf("%+v: coloured: %t", c, got)
		}
	}
}

// TestAPageIsPaged shows a page on a terminal: through $PAGER, with columns in place of the tables
// of Markdown, and without a pager where there is none.
func TestAPageIsPaged(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	defer func() { _ = terminal.Close() }()
	pager := ""
	a := &app{terminal: terminal, Process: Process{Stdout: terminal, Getenv: func(string) string { return pager }}}
	const page = "# Title\n\n<!-- a note -->\n| Exit | Means |\n|---|---|\n| 0 | a\\|b |\n| `a long name, longer than its column` | c |\n\nThe end.\n"
	echo := bufio.NewReader(terminal)
	for _, c := range []struct{ pager, title string }{{"sed s/^#/paged:/", "paged: Title"}, {"no-such-pager -x", "# Title"}, {" ", "# Title"}} {
		pager = c.pager
		must(t, a.page(layout(page)))
		for _, want := range []string{c.title, "", "  Exit  Means", "  0     a|b", "  `a long name, longer than its column`", "        c", "", "The end."} {
			if line, err := echo.ReadString('\n'); err != nil || line != want+"\r\n" {
				t.Errorf("%s: %q, %v, want %q", c.pager, line, err, want)
			}
		}
	}
}

// TestInitAsks answers the questions of init: with a number, with a word, with what is no answer at
// first, and for the region with any text.
func TestInitAsks(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	defer func() { _ = terminal.Close() }()
	var asked bytes.Buffer
	a := &app{Process: Process{Stdin: terminal, Stderr: &asked, Getenv: func(string) string { return "" }}}
	_, err = terminal.WriteString("2\nno such\nalibaba\n9\n\n3\ncn-beijing\n")
	must(t, err)
	var p plan
	must(t, a.askPlan(&p))
	if want := (plan{For: "systemd", Upstream: "alibaba", Credentials: "oidc_role_arn", Region: "cn-beijing"}); !reflect.DeepEqual(p, want) {
		t.Errorf("%+v, want %+v", p, want)
	}
	if !strings.Contains(asked.String(), "Where are the secrets?\n  1  local  ") {
		t.Errorf("it asked\n%s", asked.String())
	}
	// What a flag says is not asked.
	asked.Reset()
	p = plan{For: "docker", Upstream: "local"}
	must(t, a.askPlan(&p))
	if asked.Len() > 0 {
		t.Errorf("it asked\n%s", asked.String())
	}
}

// TestAValueIsAskedForAndNotShown types a value at a terminal, twice.
func TestAValueIsAskedForAndNotShown(t *testing.T) {
	for typed, want := range map[string]string{"hunter2\nhunter2\n": "hunter2", "hunter2\nhunter3\n": ""} {
		person, program := openTerminal(t)
		var asked bytes.Buffer
		a := &app{terminal: &asked, Process: Process{Stdin: program}}
		_, err := person.WriteString(strings.SplitAfter(typed, "\n")[0])
		must(t, err)
		_, err = person.WriteString(strings.SplitAfter(typed, "\n")[1])
		must(t, err)
		value, err := a.askValue()
		if string(value) != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", typed, value, err)
		}
		if got := asked.String(); got != "Value (it is not shown): \nOnce more: \n" {
			t.Errorf("it asked %q", got)
		}
	}
}

// openTerminal returns both ends of a terminal.
func openTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { _ = person.Close() })
	must(t, unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	must(t, err)
	program, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { _ = program.Close() })
	return person, program
}
