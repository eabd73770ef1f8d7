package command

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"secretagent/upstream/upstreamtest"
)

// trapper is a program that writes down which signals it gets, and ends on SIGTERM with code 5.
const trapper = `trap "exit 5" TERM
for n in 1 2 3 10 12 14 16 18 26 28 29 30 $(seq 35 64); do trap "echo $n >>got" $n; done
echo $$ >pid.new; mv pid.new pid
while :; do sleep 0.02; done`

// notPassed are the signals that do not reach the program; stopping are those that are to stop
// this process, and stop neither.
var (
	notPassed = []int{
		9, 19, // nobody can catch them
		4, 5, 6, 7, 8, 11, 31, // faults of this process
		13, 17, 23, 24, 25, 27, // the kernel tells this process about itself or its children
		32, 33, 34, // Go leaves them to the C library
		15, // asks the program to end
	}
	stopping = []int{20, 21, 22}
)

// TestSignals sends every signal to exec and run. It reaches the program or is known not to.
// Those that stop a job stop neither the agent nor the program, and SIGTERM ends both.
func TestSignals(t *testing.T) {
	for _, verb := range []string{"exec", "run"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			executable, err := os.Executable()
			must(t, err)
			dir := t.TempDir()
			bin := filepath.Join(dir, "secretagent")
			must(t, os.Symlink(executable, bin))
			must(t, os.WriteFile(filepath.Join(dir, "agent.yaml"), fmt.Appendf(nil,
				"upstream: {local: {database: ./secrets.db, keyring: ./keys/keyring.json, api: {socket: off}}}\nendpoint: {listen: off}\nexec: {command: [sh, -c, %q]}\n", trapper), 0o600))
			var said upstreamtest.Buffer
			cmd := exec.Command(bin, verb, "--config", "agent.yaml")
			cmd.Dir, cmd.Stderr = dir, &said
			must(t, cmd.Start())
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			read := func(name string) string {
				text, _ := os.ReadFile(filepath.Join(dir, name))
				return string(text)
			}
			wait := func(what string, isTrue func() bool) {
				t.Helper()
				for late := time.Now().Add(time.Minute); !isTrue(); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(late) {
						t.Fatalf("%s: not so; got %q, said\n%s", what, read("got"), &said)
					}
				}
			}
			wait("the program runs", func() bool { return read("pid") != "" })

			left := slices.Clone(notPassed)
			if verb == "run" {
				left = append(left, 1, 2, 3, 18) // the agent has a use for them, or none is needed
			}
			var want []string
			for n := 1; n <= 64; n++ {
				if slices.Contains(left, n) {
					continue
				}
				must(t, cmd.Process.Signal(syscall.Signal(n)))
				if slices.Contains(stopping, n) {
					continue
				}
				want = append(want, fmt.Sprint(n))
				wait(fmt.Sprintf("signal %d arrives", n), func() bool { return slices.Equal(strings.Fields(read("got")), want) })
			}
			for _, pid := range []string{fmt.Sprint(cmd.Process.Pid), strings.TrimSpace(read("pid"))} {
				if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err != nil || strings.Contains(string(stat), ") T ") {
					t.Errorf("it is stopped: %s, %v", stat, err)
				}
			}
			must(t, cmd.Process.Signal(syscall.SIGTERM))
			if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
				t.Errorf("it ended with %v; said\n%s", cmd.ProcessState, &said)
			}
		})
	}
}

// TestASignalBeforeTheProgramStarts sends a signal while exec asks an upstream that does not answer
// for the variables of its program: the exit code is the one of that signal.
func TestASignalBeforeTheProgramStarts(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		t.Run(sig.String(), func(t *testing.T) {
			executable, err := os.Executable()
			must(t, err)
			dir := t.TempDir()
			bin := filepath.Join(dir, "secretagent")
			must(t, os.Symlink(executable, bin))
			silent, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer func() { _ = silent.Close() }()
			for name, text := range map[string]string{"id": "agent", "secret": strings.Repeat("s", 30), "agent.yaml": `
upstream:
  alibaba:
    endpoints: [{region: cn-hangzhou, host: "` + silent.Addr().String() + `", scheme: http}]
    credentials: {type: access_key, accessKeyIdFile: ./id, accessKeySecretFile: ./secret}
exec: {command: [sleep, '1000'], env: [{name: A, secret: a}]}
`} {
				must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
			}
			var said upstreamtest.Buffer
			cmd := exec.Command(bin, "exec", "--config", "agent.yaml")
			cmd.Dir, cmd.Stderr = dir, &said
			must(t, cmd.Start())
			kill := time.AfterFunc(time.Minute, func() { _ = silent.Close(); _ = cmd.Process.Kill() })
			defer kill.Stop()
			if asking, err := silent.Accept(); err == nil {
				defer func() { _ = asking.Close() }()
				must(t, cmd.Process.Signal(sig))
			}
			if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != want {
				t.Errorf("it ended with %v; said\n%s", cmd.ProcessState, &said)
			}
		})
	}
}
