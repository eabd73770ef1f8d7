//go:build unix && !linux

package command

import "os"

func systemSignals() []os.Signal { return nil }
