package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// States of the service, as systemd is told them. Without systemd they go nowhere.
const (
	notifyReady    = daemon.SdNotifyReady
	notifyStopping = daemon.SdNotifyStopping
)

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be told", "state", state, "err", err, "hint", "set NotifyAccess=main in the unit")
	}
}

// watchdog tells systemd, twice in each interval that the service asks for, that the agent is
// alive, until ctx ends. Alive means that the cache answers: a deadlock in it would stop every
// lookup. Without WatchdogSec in the unit it does nothing.
func (a *Agent) watchdog(ctx context.Context) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		a.log.Warn("the watchdog of systemd is misconfigured", "err", err, "hint", "check WatchdogSec in the unit")
	}
	if interval == 0 {
		return nil
	}
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for {
		a.cache.Missing()
		notify(a.log, daemon.SdNotifyWatchdog)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
