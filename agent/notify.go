package agent

import (
	"log/slog"

	"github.com/coreos/go-systemd/v22/daemon"
)

// States of the service, as systemd is told them. Without systemd they go nowhere.
const (
	notifyReady    = daemon.SdNotifyReady
	notifyStopping = daemon.SdNotifyStopping
)

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be told", "state", state, "err", err)
	}
}
