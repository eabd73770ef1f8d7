package keyfile

import (
	"errors"
	"os/user"
	"strconv"
)

// UserID returns the number of a user that is given by name or number; -1 for none.
func UserID(name string) (int, error) {
	return accountID(name, func() (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

// GroupID returns the number of a group that is given by name or number; -1 for none.
func GroupID(name string) (int, error) {
	return accountID(name, func() (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}

func accountID(name string, lookup func() (string, error)) (int, error) {
	if name == "" {
		return -1, nil
	}
	if id, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(id), nil
	}
	text, err := lookup()
	if err != nil {
		return -1, err
	}
	id, err := strconv.Atoi(text)
	if err != nil {
		return -1, errors.New("has no number on this operating system")
	}
	return id, nil
}
