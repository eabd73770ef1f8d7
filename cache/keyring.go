package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// maxKeyring bounds the file: a key takes about 200 bytes of it.
const maxKeyring = 1 << 20

// openKeyring returns the AEAD of the keyset at path, which is made when nothing is there.
func openKeyring(path string, credential bool) (tink.AEAD, error) {
	handle, err := readKeyring(path, credential)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createKeyring(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("Sealed.Keyring: create: %w", err)
		}
		handle, err = readKeyring(path, credential) // ours, or that of whoever was faster
	}
	if err != nil {
		return nil, fmt.Errorf("Sealed.Keyring: %w", err)
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("Sealed.Keyring: %s holds keys that are not for AEAD", path)
	}
	return primitive, nil
}

// readKeyring refuses a file that others than its owner can touch; of a credential the group
// may read.
func readKeyring(path string, credential bool) (*keyset.Handle, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	foreign := fs.FileMode(0o077)
	if credential {
		foreign = 0o037
	}
	if perm := st.Mode().Perm(); perm&foreign != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("%s has mode %04o, so others than its owner can read or change it; run: chmod 600 %s", path, perm, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyring))
	defer clear(text)
	if err != nil {
		return nil, err
	}
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(text)))
	if err != nil { // which may quote the file
		return nil, fmt.Errorf("%s is not a Tink keyset in JSON; put a good copy in place, or remove it to start with a new key", path)
	}
	return handle, nil
}

// createKeyring writes a keyset with one new key, whole or not at all. It returns
// [fs.ErrExist] when path is there already.
func createKeyring(path string) error {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return err
	}
	var text bytes.Buffer
	defer func() { clear(text.Bytes()) }()
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&text)); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(text.Bytes())
	if err := errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil { // unlike rename, never replaces
		return err
	}
	return syncFolder(dir)
}

// syncFolder puts the entries of a folder on disk. Windows cannot, and need not.
func syncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
