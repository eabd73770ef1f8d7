// Command goclient prints the value of a secret:
//
//	go run ./goclient kms|aws NAME
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// client asks the agent directly: a proxy would make it refuse the request.
var client = &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}

// token returns the token itself, or what is in the file of a file:// URL.
func token(variable string) (string, error) {
	text := os.Getenv(variable)
	if path, ok := strings.CutPrefix(text, "file://"); ok {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		text = string(content)
	}
	return strings.TrimSpace(text), nil
}

func ask(path, header, variable string, into any) error {
	secret, err := token(variable)
	if err != nil {
		return err
	}
	agent := os.Getenv("AGENT")
	if agent == "" {
		agent = "http://127.0.0.1:2025"
	}
	req, err := http.NewRequest(http.MethodGet, agent+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set(header, secret)
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, body)
	}
	return json.Unmarshal(body, into)
}

func run(mode, name string) (string, error) {
	switch mode {
	case "kms":
		var v struct{ SecretData string }
		err := ask("/v1/"+url.PathEscape(name), "X-KMS-Token", "KMS_TOKEN", &v)
		return v.SecretData, err
	case "aws":
		var v struct{ SecretString string }
		err := ask("/secretsmanager/get?secretId="+url.QueryEscape(name), "X-Aws-Parameters-Secrets-Token", "AWS_TOKEN", &v)
		return v.SecretString, err
	default:
		return "", fmt.Errorf("usage: goclient kms|aws NAME")
	}
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: goclient kms|aws NAME")
	}
	value, err := run(os.Args[1], os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(value)
}
