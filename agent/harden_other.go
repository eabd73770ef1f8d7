//go:build !linux

package agent

import (
	"log/slog"

	"secretagent/agent/config"
)

// hardenProcess can do nothing here. The default is on everywhere, so that only mlockall,
// which somebody asked for, is worth a word.
func hardenProcess(cfg config.Process, log *slog.Logger) error {
	if cfg.MlockAll {
		log.Warn("process.mlockall has no effect on this operating system", "hint", "remove it")
	}
	return nil
}
