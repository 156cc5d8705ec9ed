// A client of tests/tls.py: standard input and output over Go's TLS.
//
//	pipe ADDRESS NAME CERTIFICATE VERSION
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
)

var versions = map[string]uint16{"TLS1.2": tls.VersionTLS12, "TLS1.3": tls.VersionTLS13}

func main() {
	address, name, certificate, version := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	pem, err := os.ReadFile(certificate)
	check(err)
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(pem)
	connection, err := tls.Dial("tcp", address, &tls.Config{
		RootCAs: trusted, ServerName: name, NextProtos: []string{"http/1.1"},
		MinVersion: versions[version], MaxVersion: versions[version],
	})
	check(err)
	for spoken, number := range versions {
		if number == connection.ConnectionState().Version {
			fmt.Fprintln(os.Stderr, "version", spoken)
		}
	}
	go func() {
		_, err := io.Copy(connection, os.Stdin)
		check(err)
		check(connection.CloseWrite())
	}()
	_, err = io.Copy(os.Stdout, connection)
	check(err)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
