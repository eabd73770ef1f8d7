package agent

import (
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"secretagent/agent/config"
)

// TestLockedMemoryIsWhatIsUsed runs in a process of its own: what is locked stays locked.
func TestLockedMemoryIsWhatIsUsed(t *testing.T) {
	const child = "TEST_LOCKS_ITS_MEMORY"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if strings.Contains(string(out), "--- SKIP") {
			t.Skip("the limit of locked memory is too low here")
		}
		return
	}
	if err := hardenProcess(config.Process{MlockAll: true}, slog.New(slog.DiscardHandler)); err != nil {
		if !strings.Contains(err.Error(), "LimitMEMLOCK") {
			t.Errorf("%v does not say what to raise", err)
		}
		t.Skip(err)
	}
	const reserved = 256 << 20
	untouched, err := unix.Mmap(-1, 0, reserved, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = unix.Munmap(untouched) }()
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	kib := func(name string) int {
		found := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(status)
		if found == nil {
			t.Fatalf("no %s in %s", name, status)
		}
		n, _ := strconv.Atoi(string(found[1]))
		return n
	}
	if kib("VmLck") < reserved>>10 {
		t.Errorf("only %d KiB are locked", kib("VmLck"))
	}
	if kib("VmRSS") > reserved>>11 {
		t.Errorf("%d KiB are resident: locking made resident what nobody has used", kib("VmRSS"))
	}
}
