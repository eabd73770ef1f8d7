//go:build !linux

package child

import "log/slog"

// StartReaper does nothing: orphans go to process 1 of the system, which is not us.
func StartReaper(*Supervisor, *slog.Logger) (stop func(), err error) {
	return func() {}, nil
}
