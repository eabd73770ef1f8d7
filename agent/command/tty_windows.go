package command

import (
	"os"

	"golang.org/x/sys/windows"
)

func isTTY(f *os.File) bool {
	var mode uint32
	return windows.GetConsoleMode(windows.Handle(f.Fd()), &mode) == nil
}
