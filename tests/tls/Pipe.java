import java.io.FileInputStream;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.Socket;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/** A client of tests/tls.py: standard input and output over the JDK's TLS: HOST PORT NAME CERTIFICATE VERSION. */
class Pipe {
    public static void main(String[] arguments) throws Exception {
        String host = arguments[0], name = arguments[2], certificate = arguments[3], version = arguments[4];
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null);
        try (InputStream file = new FileInputStream(certificate)) {
            trusted.setCertificateEntry("relay", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(trusted);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        Socket tcp = new Socket(host, Integer.parseInt(arguments[1]));
        SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket(tcp, name, tcp.getPort(), true);
        SSLParameters parameters = socket.getSSLParameters();
        parameters.setProtocols(new String[] {version});
        parameters.setApplicationProtocols(new String[] {"http/1.1"});
        parameters.setEndpointIdentificationAlgorithm("HTTPS");
        socket.setSSLParameters(parameters);
        socket.startHandshake();
        System.err.println("version " + socket.getSession().getProtocol());
        OutputStream to = socket.getOutputStream();
        Thread sends = new Thread(() -> {
            try {
                copy(System.in, to);
                socket.shutdownOutput();
            } catch (Exception error) {
                System.err.println(error);
            }
        });
        sends.setDaemon(true);
        sends.start();
        copy(socket.getInputStream(), System.out);
    }

    private static void copy(InputStream from, OutputStream to) throws Exception {
        byte[] buffer = new byte[65536];
        for (int read; (read = from.read(buffer)) > 0; ) {
            to.write(buffer, 0, read);
            to.flush();
        }
    }
}
