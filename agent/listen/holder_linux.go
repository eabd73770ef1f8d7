package listen

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// holderOf says which process listens on addr, " (pid 7, nginx)"; empty where that does not show, as with
// processes of others.
func holderOf(addr *net.TCPAddr) string {
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		if inode := listening(table, addr); inode != "" {
			return processWith("socket:[" + inode + "]")
		}
	}
	return ""
}

// listening returns the inode of the socket in one of the kernel's tables that listens on addr, or on its port
// of every address.
func listening(table string, addr *net.TCPAddr) (inode string) {
	f, err := os.Open(table)
	if err != nil {
		return ""
	}
	defer f.Close()
	const listen = "0A"
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text()) // sl, local address, remote address, state, …, inode
		if len(fields) < 10 || fields[3] != listen {
			continue
		}
		host, port, _ := strings.Cut(fields[1], ":")
		ip := kernelIP(host)
		if port == fmt.Sprintf("%04X", addr.Port) && (ip.IsUnspecified() || addr.IP.IsUnspecified() || ip.Equal(addr.IP)) {
			return fields[9]
		}
	}
	return ""
}

// kernelIP reads an address as the kernel writes it: words of four bytes in the order of the machine.
func kernelIP(text string) net.IP {
	ip, err := hex.DecodeString(text)
	if err != nil || len(ip)%4 != 0 {
		return nil
	}
	for word := range slices.Chunk(ip, 4) {
		binary.BigEndian.PutUint32(word, binary.NativeEndian.Uint32(word))
	}
	return ip
}

// processWith returns the process that has a descriptor open, among those that we may look at.
func processWith(descriptor string) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != descriptor {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		name, _ := os.ReadFile(filepath.Join(process, "comm"))
		return fmt.Sprintf(" (pid %s, %s)", filepath.Base(process), bytes.ToValidUTF8(bytes.TrimSpace(name), nil))
	}
	return ""
}
