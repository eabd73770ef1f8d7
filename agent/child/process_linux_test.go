package child

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	roles["orphans"] = playOrphans
	roles["orphan-maker"] = playOrphanMaker
}

func TestLinuxApplicationDiesWithItsSupervisor(t *testing.T) {
	cmd, out := startSupervisor(t, nil, nil, "serve", "stubborn")
	pid := out.pid(t, "started", 1)
	must(t, cmd.Process.Kill())
	gone(t, pid)
}

// The thread that forked the application must live as long as it: its death would be taken for
// ours.
func TestLinuxApplicationOutlivesTheThreadsOfItsSupervisor(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	var churn sync.WaitGroup
	churn.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
			}
			churn.Go(runtime.LockOSThread) // a goroutine that ends locked ends its thread
		}
	})
	var apps []*real
	for range 10 {
		apps = append(apps, serving(t, Options{}))
	}
	time.Sleep(500 * time.Millisecond) // in which thousands of threads end
	close(stop)
	churn.Wait()
	for _, r := range apps {
		if s := r.Status(); s.State != Running {
			t.Errorf("%+v", s)
		}
		r.stop(t, 0)
	}
}

func TestLinuxApplicationIsSetUpAsPromised(t *testing.T) {
	open, err := os.Create(filepath.Join(t.TempDir(), "open"))
	must(t, err)
	defer func() { _ = open.Close() }()
	r := serving(t, Options{})
	pid := r.out.pid(t, "started", 1)
	for _, pid := range []int{pid, os.Getpid()} {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || bytes.Contains(line, []byte(marker)) {
			t.Errorf("a command line has the value: %q, %v", line, err)
		}
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !bytes.Contains(env, []byte("P="+marker+"-0\x00")) {
		t.Errorf("the value is not in the environment: %v", err)
	}
	if group, err := unix.Getpgid(pid); err != nil || group != pid {
		t.Errorf("the group of process %d is %d, not its own, %v", pid, group, err)
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(links) < 3 {
		t.Fatal(links, err)
	}
	for _, link := range links {
		if target, _ := os.Readlink(link); target == open.Name() {
			t.Errorf("the application has %s", link)
		}
	}
	r.stop(t, 0)
}

// playOrphans makes n orphans and waits until somebody has reaped them. Half of them leave
// the group.
func playOrphans(args []string) int {
	n, _ := strconv.Atoi(args[0])
	for i := range n {
		cmd := exec.Command(os.Args[0], "orphan-maker", strconv.Itoa(i))
		cmd.Stdout = os.Stdout
		if err := cmd.Run(); err != nil {
			say("error", err)
		}
	}
	seen := false
	quiet := time.Now()
	for late := time.Now().Add(patience); time.Since(quiet) < 300*time.Millisecond; time.Sleep(5 * time.Millisecond) {
		// A hook of the supervisor is a zombie for a moment, too; n of them are not.
		left := len(orphansOf(os.Getppid()))
		if seen = seen || left > 1; !seen || left > 1 {
			quiet = time.Now()
		}
		if time.Now().After(late) {
			say("error: not reaped, seen", seen, orphansOf(os.Getppid()))
			return 1
		}
	}
	say("finished")
	return 42
}

// playOrphanMaker starts a process that ends soon, and ends before it.
func playOrphanMaker(args []string) int {
	i, _ := strconv.Atoi(args[0])
	cmd := exec.Command("sleep", "0.1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: i%2 == 0}
	if err := cmd.Start(); err != nil {
		say("error", err)
		return 1
	}
	say("orphan", cmd.Process.Pid)
	return 0
}

// orphansOf returns the children of pid that nobody has reaped.
func orphansOf(pid int) (zombies []string) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, _ := os.ReadFile(path)
		_, rest, _ := bytes.Cut(stat, []byte(") "))
		if bytes.HasPrefix(rest, fmt.Appendf(nil, "Z %d ", pid)) {
			zombies = append(zombies, string(stat))
		}
	}
	return zombies
}

func TestLinuxOrphansAreReapedAndNothingElse(t *testing.T) {
	if testing.Short() {
		t.Skip("the reaper takes some seconds")
	}
	t.Parallel()
	const orphans = "6"
	var cmds []*program
	var outs []*output
	start := func(wrap []string, how string) {
		cmd, out := startSupervisor(t, wrap, nil, how, "orphans", orphans)
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	start(nil, "-subreaper")
	namespace := []string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc"}
	if out, err := exec.Command(namespace[0], append(namespace[1:], "true")...).CombinedOutput(); err != nil {
		t.Logf("no new process namespace here, so no process 1: %v: %s", err, out)
	} else {
		start(namespace, "-init")
	}
	for i, out := range outs {
		out.line(t, "finished", 1)
		if code := cmds[i].code(t); code != 42 {
			t.Errorf("exit code %d: the reaper took the status of the application; output\n%s", code, out)
		}
		if strings.Contains(out.String(), "failed") || strings.Contains(out.String(), "error") || strings.Count(out.String(), "orphan ") != 6 {
			t.Errorf("not reaped, or the reaper took what others wait for:\n%s", out)
		}
		if n := out.pid(t, "hooks", 1); n == 0 {
			t.Error("no other process ran")
		}
	}
}

func TestLinuxReaperCollectsAStrangerOnlyAfterSeveralLooks(t *testing.T) {
	r := &reaper{group: func() (int, int) { return 0, 0 }, log: slog.New(slog.DiscardHandler), seen: map[int]sighting{}}
	zombie := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0], "exit", "5")
		must(t, cmd.Start())
		awaitExit(cmd.Process.Pid)
		return cmd
	}
	cmd := zombie()
	now := time.Now()
	for range reapLooks - 1 {
		now = now.Add(reapInterval)
		if !r.look(now) || !r.look(now.Add(reapInterval/2)) { // the second is too soon to count
			t.Fatal("a zombie was not noticed")
		}
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("its parent got %v", err)
	}
	if r.look(now.Add(reapInterval)) {
		t.Error("a zombie is noticed that is gone")
	}
	cmd = zombie()
	r.group = func() (int, int) { return cmd.Process.Pid, cmd.Process.Pid }
	for range reapLooks + 1 {
		now = now.Add(reapInterval)
		r.look(now)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("the application was reaped: %v", err)
	}
}

// openTerminal returns both ends of a new terminal.
func openTerminal(t *testing.T) (outside, inside *os.File) {
	t.Helper()
	outside, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { _ = outside.Close() })
	var n int
	conn, err := outside.SyscallConn()
	must(t, err)
	err2 := conn.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err != nil || err2 != nil {
		t.Skipf("no terminals here: %v, %v", err, err2)
	}
	inside, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	return outside, inside
}

func TestLinuxShellInATerminalHasJobControl(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash here")
	}
	outside, inside := openTerminal(t)
	cmd, _ := startSupervisor(t, nil, inside, bash, "--norc", "--noprofile", "-i")
	_ = inside.Close()
	out, read := &output{}, make(chan struct{})
	go func() { _, _ = io.Copy(out, outside); close(read) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = outside.Close(); <-read })
	typed := func(lines ...string) {
		t.Helper()
		_, err := outside.WriteString(strings.Join(lines, ""))
		must(t, err)
	}
	typed("PS1=\n", "trap 'echo inter\"\"rupted' INT\n", "echo result=$((40+2))\n")
	out.line(t, "result=42", 1)
	typed("\x03\n") // Ctrl-C reaches the shell, once
	await(t, func() bool { return strings.Contains(out.String(), "interrupted") }, func() string { return "no Ctrl-C: " + out.String() })
	typed("trap - INT\n", "sh -c 'echo sleep\"\"ing; exec sleep 100'\n")
	out.line(t, "sleeping", 1)
	typed("\x03") // Ctrl-C ends sleep, and not the shell or its supervisor
	typed("\n", "echo after=$?\n", "sleep 101 &\n", "jobs; kill %1; wait; echo jobs-done=$?\n", "exit 3\n")
	out.line(t, "after=130", 1)
	out.line(t, "jobs-done=", 1)
	if code := cmd.code(t); code != 3 {
		t.Errorf("exit code %d, want 3; output %q", code, out)
	}
	if strings.Contains(out.String(), "no job control") || strings.Count(out.String(), "interrupted") != 1 {
		t.Errorf("the shell complains, or Ctrl-C arrived more than once: %q", out)
	}
}
