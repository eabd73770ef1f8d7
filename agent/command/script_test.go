package command

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes this test binary also the program that the scripts call.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"secretagent": func() {
			os.Exit(Main(SignalContext(context.Background()), Process{
				Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
				Getenv: os.Getenv, Build: Build{Version: "1.2.3"}, Example: "# every key\nupstream: {local: {}}\n",
			}))
		},
	})
}

// TestScripts runs the stories of testdata/script. Beside the commands of testscript they
// have:
//
//	exits CODE PROGRAM ARGS...   like exec, and holds the exit code
//	await SOCKET|URL             waits until somebody serves the socket, or the URL answers 200
//	await-file FILE [TEXT]       waits until the file is there, and contains the text
//	await-status TEXT [ARGS...]  waits until secretagent status prints the text
//	await-keys CONFIG REGEXP     waits until secretagent keys list prints what the expression matches
//	freeport VAR                 sets VAR to a port that was free a moment ago
func TestScripts(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the scripts call sh and send signals")
	}
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			// Under the race detector every process sleeps for a second before it exits.
			env.Setenv("GORACE", "atexit_sleep_ms=20")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":        scriptExits,
			"await":        scriptAwait,
			"await-file":   scriptAwaitFile,
			"await-status": scriptAwaitStatus,
			"await-keys":   scriptAwaitKeys,
			"freeport":     scriptFreePort,
		},
	})
}

func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d\n[stdout]\n%s[stderr]\n%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await SOCKET|URL")
	}
	ready := func() error {
		conn, err := net.Dial("unix", ts.MkAbs(args[0]))
		if err != nil {
			return err
		}
		return conn.Close()
	}
	if strings.HasPrefix(args[0], "http") {
		ready = func() error {
			resp, err := (&http.Client{Timeout: 10 * time.Second}).Get(args[0])
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return errors.New(resp.Status)
			}
			return nil
		}
	}
	eventually(ts, args[0], ready)
}

func scriptAwaitFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: await-file FILE [TEXT]")
	}
	eventually(ts, args[0], func() error {
		content, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && len(args) == 2 && !strings.Contains(string(content), args[1]) {
			err = errors.New(args[1] + " is not in it")
		}
		return err
	})
}

func scriptAwaitStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: await-status TEXT [ARGS...]")
	}
	eventually(ts, args[0], func() error {
		err := ts.Exec("secretagent", append([]string{"status"}, args[1:]...)...)
		oneLine := func(text string) string { return strings.Join(strings.Fields(text), " ") } // the path of the test decides where lines break
		if !strings.Contains(oneLine(ts.ReadFile("stdout")), oneLine(args[0])) {
			return fmt.Errorf("not in the status: %w", err)
		}
		return nil
	})
}

func scriptAwaitKeys(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await-keys CONFIG REGEXP")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	eventually(ts, args[1], func() error {
		err := ts.Exec("secretagent", "keys", "list", "--config", args[0])
		if err == nil && !pattern.MatchString(ts.ReadFile("stdout")) {
			err = errors.New(ts.ReadFile("stdout"))
		}
		return err
	})
}

// eventually waits until ready returns nil, for at most a minute.
func eventually(ts *testscript.TestScript, what string, ready func() error) {
	var err error
	for range 3000 {
		if err = ready(); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("%s: %v", what, err)
}

func scriptFreePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport VAR")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
	ts.Check(ln.Close())
}
