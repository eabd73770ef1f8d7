//go:build !linux

package child

import (
	"errors"
	"log/slog"
)

// startReaper does nothing: orphans go to process 1 of the system, which is not us.
func startReaper(subreaper bool, _ func() (leader, id int), _ *slog.Logger) (stop func(), err error) {
	if subreaper {
		return nil, errors.New("subreaper: only Linux has it: switch it off")
	}
	return func() {}, nil
}
