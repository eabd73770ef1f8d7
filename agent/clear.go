package agent

import (
	"os"

	"secretagent/render"
	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// FormatTexts returns the values of secrets as a file: name of the entry → value. The format is env,
// json or yaml. An error names the secret, and quotes no value.
func FormatTexts(format string, texts map[string]upstream.SecretData, secretOf func(name string) upstream.SecretName) ([]byte, error) {
	return render.FormatTexts(render.Format(format), texts, secretOf)
}

// WriteClearText writes a file that only the user of this process can read. What is there is replaced
// on request alone, and not where others can read it; otherwise the error matches [fs.ErrExist].
func WriteClearText(path string, content []byte, replace bool) error {
	if _, err := os.Lstat(path); err != nil || !replace {
		return keyfile.ClearText.Create(path, content)
	}
	if _, err := keyfile.ClearText.Read(path); err != nil {
		return err
	}
	_, err := keyfile.ClearText.Replace(path, func(temp string) error {
		f, err := os.OpenFile(temp, os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(content); err != nil {
			return err
		}
		return f.Sync()
	})
	return err
}
