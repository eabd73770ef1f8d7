package agent

import (
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"secretagent/agent/config"
)

// hardenProcess keeps the memory of this process, which holds secrets, from other places: no
// core dump, no ptrace and no /proc/PID/mem for processes of the same user, and when asked
// for no swapping.
func hardenProcess(cfg config.Process, log *slog.Logger) error {
	if cfg.NoDump {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			return fmt.Errorf("process.noDump: %w", err)
		}
	}
	if cfg.MlockAll {
		// Go reserves much more than it uses: only what is used is made resident.
		if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
			return fmt.Errorf("process.mlockall: %w; raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity under systemd) or switch it off", err)
		}
	}
	return nil
}
