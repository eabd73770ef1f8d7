//go:build unix

// Package entrypoint holds an application in a container with the agent as its entrypoint;
// this test runs it as a process, and as a container where podman has an image to build on.
package entrypoint

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"secretagent/examples/internal/example"
)

const (
	second = `{"username":"other","password":"second-value"}`

	startedFirst  = "started: user app, a password of 5 characters, INHERITED=\n"
	startedSecond = "started: user other, a password of 12 characters, INHERITED=\n"
)

func TestProcess(t *testing.T) {
	sh := example.Tool(t, "sh")
	bin, dir := example.Build(t), example.Copy(t)
	cmd := exec.Command(bin, "exec", "--config", "agent.yaml", "--", sh, "app.sh")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "INHERITED=yes")
	put := []string{bin, "secret", "put", "demo/db", "--config", "agent.yaml", "--data", second}
	follow(t, cmd, dir, put, "stopping\n"+startedSecond, func() error { return cmd.Process.Signal(syscall.SIGUSR1) })
}

// follow runs the application under its agent, changes its secret with put, waits for the
// restart and asks it to end.
func follow(t *testing.T, cmd *exec.Cmd, dir string, put []string, restarted string, end func() error) {
	t.Helper()
	var out, log example.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	example.Must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		if t.Failed() {
			t.Logf("output:\n%s\nlog:\n%s", out.String(), log.String())
		}
	})
	example.Eventually(t, "the application", func() bool { return strings.Contains(out.String(), startedFirst) })
	if text, code := example.Output(t, dir, nil, put...); code != 0 {
		t.Fatalf("secret put: %s", text)
	}
	example.Eventually(t, "the restart", func() bool { return strings.Contains(out.String(), restarted) })
	example.Must(t, end())
	select {
	case <-ended:
	case <-time.After(example.Patience):
		t.Fatal("the application does not end")
	}
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("exit code %d, not the 7 of the application", code)
	}
	if strings.Contains(log.String(), "second-value") {
		t.Error("a value is in the log")
	}
}

func TestContainer(t *testing.T) {
	podman := example.Tool(t, "podman")
	// Any image with a shell would do; this one is what the agent itself is built on.
	const base = "docker.io/library/golang:1.26"
	if _, code := example.Output(t, "", nil, podman, "image", "exists", base); code != 0 {
		t.Skipf("needs the image %s", base)
	}
	if out, code := example.Output(t, "", nil, podman, "run", "--rm", "--network=none", base, "sh", "-c", ":"); code != 0 {
		t.Skipf("podman cannot run containers here: %s", out)
	}
	bin, dir := example.Build(t), example.Copy(t)
	name := fmt.Sprintf("secretagent-example-%d", os.Getpid())
	agentImage, appImage := "localhost/"+name+"-agent", "localhost/"+name
	build := func(image, folder string, args ...string) {
		t.Helper()
		argv := append([]string{podman, "build", "--pull=never", "--network=none", "--no-cache", "-t", image}, args...)
		if out, code := example.Output(t, "", nil, append(argv, folder)...); code != 0 {
			t.Fatalf("podman build: %s", out)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), example.Patience)
			defer cancel()
			if out, err := exec.CommandContext(ctx, podman, "rmi", "-f", image).CombinedOutput(); err != nil {
				t.Errorf("podman rmi: %s", out)
			}
		})
	}
	agentDir := filepath.Dir(bin)
	example.Write(t, filepath.Join(agentDir, "Dockerfile"), "FROM scratch\nCOPY secretagent /secretagent\n")
	build(agentImage, agentDir)
	build(appImage, dir, "--build-arg", "AGENT="+agentImage, "--build-arg", "BASE="+base)

	cmd := exec.Command(podman, "run", "--name", name, "--rm", "--read-only", "--cap-drop=all", "--security-opt", "no-new-privileges",
		"--network=none", "--env", "INHERITED=yes", appImage,
		// The base may be as small as a shell and busybox, without a link for sleep.
		"sh", "-c", `command -v sleep >/dev/null || sleep() { busybox sleep "$@"; }; . ./app.sh`)
	t.Cleanup(func() { _ = exec.Command(podman, "rm", "-f", name).Run() })
	put := []string{podman, "exec", name, "/usr/local/bin/secretagent", "secret", "put", "demo/db", "--config", "/app/agent.yaml", "--data", second}
	follow(t, cmd, dir, put, startedSecond, func() error { return exec.Command(podman, "kill", "-s", "USR1", name).Run() })
}
